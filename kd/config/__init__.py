"""Configuration of a run: the schema of its YAML, reading it, its defaults and its errors."""
