"""Models that a server lists at /models."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any


def read_cards(listed: Any) -> dict[str, dict[str, Any]]:
    """Read the answer of /models: id -> card; empty where it is no list of models."""
    data = listed.get("data") if isinstance(listed, dict) else None
    return {str(card.get("id")): card for card in data if isinstance(card, dict)} if isinstance(data, list) else {}


def explain_missing(model: str, cards: Mapping[str, Any], hide: Callable[[str], str]) -> str:
    """Say which models are there, and the nearest, where `model` is not; `hide` cleans text from outside."""
    near = difflib.get_close_matches(model, cards, n=1, cutoff=0.4)
    return f"no model {model!r} there; it has {hide(', '.join(map(repr, cards)) or 'none')}" + (
        f"; did you mean {hide(near[0])!r}?" if near else ""
    )
