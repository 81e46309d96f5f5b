"""Entry points: train, capture, verify, evaluate."""
