"""Contradictions between keys that are each right alone."""
