"""Objective: the weights of the loss's terms, and the loss over `kernels`."""
