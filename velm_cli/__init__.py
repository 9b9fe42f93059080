"""velm: train vision-enhanced language models from one command line, and report the field's numbers."""

__version__ = "0.1.0"
