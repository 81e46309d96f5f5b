"""Evaluation on held-out records: cases, greedy answers, strict judgement, metrics, their files."""
