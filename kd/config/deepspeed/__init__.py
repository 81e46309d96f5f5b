"""DeepSpeed JSONs of student and teacher: opened here alone, held to the YAML, and filled in from it."""
