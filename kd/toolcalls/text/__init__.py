"""Calls that an assistant writes as text: one way of writing them a file, registered in text_calls.py."""
