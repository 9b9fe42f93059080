"""The training loop and what it needs: state, checkpoints, optimiser, signals."""
