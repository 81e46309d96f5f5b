"""Whole conversations: a model's own calls are answered, and what it then says is judged turn by turn."""
