"""Checks of a record before its format is looked at: strict JSON, bounded in size and depth, no private reasoning.

Strict: UTF-8; no key twice in one object (parsers disagree on which one counts); no NaN or Infinity, and no number too
large to be one; no half surrogate pair. A record is at most MAX_RECORD_BYTES long and MAX_DEPTH levels deep: a million
tokens are longer than any sequence, and no honest call nests deeper.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from kd.errors import SpanwiseError
from kd.toolcalls.json_values import MAX_DEPTH

MAX_RECORD_BYTES = 4 << 20
COT_FIELDS = frozenset(
    {
        "reasoning_content",
        "teacher_reasoning_content",
        "teacher_reasoning",
        "reasoning",
        "thinking",
        "reasoning_details",
        "thinking_blocks",
        "chain_of_thought",  # the same by other servers' names
    }
)
COT_TAG = re.compile(
    r"</?think(ing)?>", re.IGNORECASE
)  # some models write the closing one alone: their prompt holds the opening
_NOT_SAID = frozenset(
    {"arguments", "parameters", "properties", "answers", "ground_truth", "possible_answer"}
)  # names there are a tool's own
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class DataError(SpanwiseError, ValueError):
    """A record or data file that cannot be used; the message names the file, the line, the field and the remedy.

    `check` is the name of the check that it fails, of kd.preflight.records.CHECKS.
    """

    check = "read"


class ReasoningError(DataError):
    """A record that holds chain-of-thought."""

    check = "reasoning"


class SpecialTokenError(DataError):
    """A record with the text of a special token where it cannot stay text."""

    check = "special"


class ArgumentsError(DataError):
    """A record with arguments that the schema of their tool forbids, or with a broken schema."""

    check = "arguments"


class UnknownToolError(DataError):
    """A record that calls a tool which it does not offer."""

    check = "known"


def decode_json(text: bytes | str, where: str) -> Any:
    """Decode one JSON text strictly; `where` opens every message.

    Raises:
        DataError: says what is wrong and at which character.
    """
    if len(text) > MAX_RECORD_BYTES:
        raise DataError(f"{where}: {say_too_long(len(text))}")
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = _DECODER.decode(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not a line of JSON in UTF-8: {error.msg} (character {error.pos + 1})") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not a line of JSON in UTF-8: byte {error.start + 1} is {error.object[error.start]:#04x} "
            f"({error.reason})"
        ) from None
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: half a surrogate pair (\\u{ord(error.object[error.start]):04x}); write the whole character, or "
            "remove it"
        ) from None
    except RecursionError:
        raise DataError(f"{where}: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise DataError(f"{where}: not a line of JSON in UTF-8: {error}") from None
    check_shape(value, where)
    return value


def say_too_long(num_bytes: int | None = None) -> str:
    """Say that a record is longer than it may be, and what to do."""
    size = "more than" if num_bytes is None else f"{num_bytes / 2**20:.1f} MiB long, over"
    return f"{size} the {MAX_RECORD_BYTES >> 20} MiB a record may have; split it, or cut the long text"


def check_shape(value: Any, where: str) -> None:
    """Refuse a value that nests deeper than MAX_DEPTH or holds a number that is not finite.

    Raises:
        DataError: says which.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        following: list = []
        for inner in level:
            if isinstance(inner, dict):
                following.extend(inner.values())
            elif isinstance(inner, list):
                following.extend(inner)
            elif isinstance(inner, float) and not math.isfinite(inner):
                raise DataError(f"{where}: {inner} is not a JSON number; write a finite one, or null")
        if not following:
            return
        level = following
    raise DataError(f"{where}: nested deeper than {MAX_DEPTH} levels")


def check_no_reasoning(value: Any, where: str, dot: str = ": ") -> None:
    """Refuse a chain-of-thought field, or a <think> block in a content, at any depth.

    Raises:
        ReasoningError: names the field.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            if key.lower().replace("-", "_") in COT_FIELDS and inner not in (None, "", [], {}):
                raise ReasoningError(f"{where}{dot}{key}: chain-of-thought is never trained on; remove the field")
            if key == "content" and isinstance(inner, str) and (tag := COT_TAG.search(inner)):
                raise ReasoningError(f"{where}{dot}content: holds a {tag[0]} block; remove the reasoning from the text")
            if key not in _NOT_SAID:
                check_no_reasoning(inner, f"{where}{dot}{key}", ".")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check_no_reasoning(inner, f"{where}[{index}]", ".")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"an object has the key {twice[:60]!r} twice; keep one of them")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; write a finite number, or null")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
