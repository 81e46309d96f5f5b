"""Rendering: the chat template's text of a record, its tokens, and the span bits of each."""
