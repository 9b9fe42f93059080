"""One short file a stage: build, run, return a number."""
