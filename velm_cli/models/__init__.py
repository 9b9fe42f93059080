"""Vision encoders, text encoders, fusions, the model they make, and decoding. Knows no engine and no Hydra."""
