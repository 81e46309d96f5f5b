"""Data sets from a teacher's endpoint: within a budget, safe from kills, without private reasoning."""
