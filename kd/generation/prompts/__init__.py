"""Prompts of a data set: read from files or composed of tools, each another."""
