"""Training: the loop, the engine under it, the optimizer, the run log."""
