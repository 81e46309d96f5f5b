"""Models and tokenizers from transformers: opened, built, cut, and read at chosen rows."""
