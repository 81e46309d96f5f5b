"""Where the teacher's signal comes from, for the supervised rows of a micro-batch."""
