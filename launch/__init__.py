"""Entry points: train, capture, verify, evaluate, plan, and the command `spanwise` over them."""
