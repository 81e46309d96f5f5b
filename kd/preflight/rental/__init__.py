"""Plans for GPUs that are not here yet: tables of counts, sizes and settings, with time and money."""
