"""Annotations and images to Records, Records to a store, a store to Batches."""
