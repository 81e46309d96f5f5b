"""JSON as its grammar has it, within bounds: read strictly, or mended by json-repair.

Refused: a key twice (parsers disagree on which one counts), NaN and numbers too large to be held, half a surrogate
pair, and nesting past MAX_DEPTH. Mending is for short texts alone, since json-repair takes quadratic time.
"""

from __future__ import annotations

import json
import math

import json_repair

from kd.toolcalls.json_values import MAX_DEPTH

MAX_MENDED = 4_000  # characters of a block
MAX_MENDED_OF_A_TEXT = 8_000
_WINDOW = 4_096  # characters
_EDGE = 16  # an error this near to the window's end may be the window's own


class JsonProblem(ValueError):
    """Refusal of a text as JSON, with the offset at which it was seen."""

    def __init__(self, reason: str, at: int):
        super().__init__(reason)
        self.at = at


def read_json(text: str, at: int) -> tuple[object, int]:
    """Read the JSON value that begins at `at`: (value, end).

    The decoder is given a window of the text, widened where the value may go on past it: its errors count the lines
    before them, which would make many errors in a long text cost quadratic time.

    Raises:
        JsonProblem: none does, or it is refused.
    """
    width = _WINDOW
    while True:
        window = text[at : at + width]
        last = at + width >= len(text)
        try:
            value, end = _DECODER.raw_decode(window)
            if last or end < len(window):
                return value, at + end
        except json.JSONDecodeError as error:
            if last or not error.msg.startswith("Unterminated") and error.pos < len(window) - _EDGE:
                raise JsonProblem(error.msg, at + error.pos) from None
        except (ValueError, RecursionError) as error:
            raise JsonProblem(str(error), at) from None
        width *= 8


def explain(problem: JsonProblem, at: int) -> str:
    """Say why `read_json` refused a value; characters are counted from `at`."""
    return f"not valid JSON: {problem} (character {problem.at - at})"


def find_excess(value: object) -> str:
    """Say what a value that was read has and no honest one would, or ""."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level if isinstance(outer, (dict, list)) for inner in _children(outer)]
    if level:
        return f"nested deeper than {MAX_DEPTH} levels"
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half a surrogate pair, which is no character"
    return ""


class Mender:
    """Mends JSON by json-repair, as long as the budget of one text lasts."""

    def __init__(self) -> None:
        self._left = MAX_MENDED_OF_A_TEXT

    def mend(self, text: str) -> object:
        """Return the value that `text` was meant to be, or None."""
        if len(text) > min(MAX_MENDED, self._left) or _nests_too_deep(text):
            return None
        self._left -= len(text)
        try:
            value = json_repair.loads(text)
            json.dumps(value, allow_nan=False)  # json-repair lets NaN through
        except (ValueError, TypeError, RecursionError):  # past mending
            return None
        return None if find_excess(value) else value


def _nests_too_deep(text: str) -> bool:
    depth = deepest = 0
    for char in text:
        depth += (char in "[{") - (char in "]}")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH


def _children(value: dict | list) -> list:
    return list(value.values()) if isinstance(value, dict) else value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object names a key twice")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is too large a number")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite)
