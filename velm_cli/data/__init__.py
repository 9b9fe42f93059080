"""Annotations and images to Examples, Examples to a store, a store to Batches."""
