"""Batching: records in an order of their own, as the micro-batches of optimizer steps."""
