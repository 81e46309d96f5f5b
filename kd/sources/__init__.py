"""Sources: the records of a stage by position, from files or the demo corpus."""
