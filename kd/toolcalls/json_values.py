"""JSON values: equality, and one as text for a message."""

from __future__ import annotations

import json

MAX_DEPTH = 64  # no honest call nests deeper; a babbling model's "[[[[" would exhaust the stack of whoever walks it


def same_json(left: object, right: object) -> bool:
    """Compare JSON values: 1 equals 1.0, true does not equal 1, key order is free, list order is not."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_json(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return left == right


def show_json(value: object) -> str:
    """Write a value as JSON for a message, cut at 80 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):  # a tool file in Python or YAML may hold what JSON cannot
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
