"""Processes of one job: start, collectives, DeepSpeed settings, exit."""
