"""Checkpoints of a run, and the export of its student."""
