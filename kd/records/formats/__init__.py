"""Record formats: one a file, converted to the chat format."""
