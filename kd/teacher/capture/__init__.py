"""Capture: the teacher runs once over the data, its targets go to a cache, and a cache is verified."""
