"""What `velm export` writes: a slim run folder, a transformers model, graphs for ONNX and torch.export. No Hydra."""
