"""Call syntaxes: one way of writing a call a file, registered in registry.py."""
