"""Teacher's targets for the supervised rows of a micro-batch: live, from a cache, or from a source of your own."""
