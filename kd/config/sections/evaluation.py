"""How the result is measured."""

from __future__ import annotations

from kd.config.fields import Count, Section


class Evaluation(Section):
    num_records: Count = 200
    """Records of each held-out split."""
    batch_size: Count = 16
    """Prompts generated together."""
    max_new_tokens: Count = 256
    """Longest answer in tokens."""
    baselines: bool = True
    """Also evaluate the teacher and an untrained student. With a cache the teacher is left out where its weights are
    not on this machine.
    """
