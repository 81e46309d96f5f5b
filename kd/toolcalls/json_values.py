"""JSON values: equality, one as text for a message, and one as bytes of a file."""

from __future__ import annotations

import json
import math
from typing import Any

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


def as_text(value: Any) -> str:
    """Return a text as it is, and any other value as JSON text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def encode_json(value: Any, indent: int | None = None) -> bytes:
    """Encode any value of a generated text, or of a record, as one JSON text in UTF-8; it never raises for its content.

    Half a surrogate pair is written as its escape, and read back as it was. What no JSON number is becomes text: an
    infinity, NaN, an integer that Python does not print.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        text = json.dumps(_replace_numbers(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return text.encode("utf-8", "backslashreplace")


def _replace_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_numbers(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_numbers(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and abs(value) >= 10**4300:  # sys.set_int_max_str_digits
        return hex(value)
    return value
