"""Calls in text: read, located, held to their tools' JSON Schemas; values carried from a result into an answer."""
