"""Names that are held out: chosen by their hash, so that more names change little."""

from __future__ import annotations

from collections.abc import Sequence

from kd.hashing import hash_text

TRAIN, UNSEEN_TOOLS, UNSEEN_TEMPLATES = "train", "unseen_tools", "unseen_templates"
SPLITS = (TRAIN, UNSEEN_TOOLS, UNSEEN_TEMPLATES)


def choose_held_out(names: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Choose a fraction of known names, at least one of several where it is above 0, and never all unless it is 1."""
    if not fraction or len(names) < 2 and fraction < 1:
        return set()
    num = len(names) if fraction == 1 else min(max(round(fraction * len(names)), 1), len(names) - 1)
    return set(sorted(names, key=lambda name: hash_text(f"{seed}/{name}"))[:num])


def is_held_out(name: str, fraction: float, seed: int) -> bool:
    """Tell whether a name is among a fraction of all names that there could be."""
    return int(hash_text(f"{seed}/{name}")[:8], 16) < fraction * 2**32
