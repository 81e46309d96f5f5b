"""Endpoint as the teacher of a capture: one request a record, and what to do when a server misbehaves."""
