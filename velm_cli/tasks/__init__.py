"""Model and losses in one object, so that the loop knows neither."""
