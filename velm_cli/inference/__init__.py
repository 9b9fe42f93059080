"""Using a trained model on anybody's images: from Python, from the command line, over HTTP. No store, no Hydra."""
