"""Learners: a model and its losses in one object. All that the engine knows of what it trains."""
