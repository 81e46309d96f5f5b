"""Rollouts: the student's own answers."""
