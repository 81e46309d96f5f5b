"""Demo corpus: made-up tools, conversations and calls, drawn from a seed."""
