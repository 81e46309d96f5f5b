"""Folders: replaced whole and recognised, and locked for one process at a time."""
