"""Sections of a run's YAML: their keys, types, ranges, units and defaults."""
