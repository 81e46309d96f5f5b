"""Rewards of the student's own answers: one a file, in [0, 1], registered in reward.py."""
