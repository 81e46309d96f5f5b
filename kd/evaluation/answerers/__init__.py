"""Whom an evaluation asks: anything that answers a batch of prompts."""
