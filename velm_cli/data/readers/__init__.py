"""One module an annotation format: files in, Records out, nothing else."""
