"""What every reader of kd/toolcalls/locate.py gives back, and what a whole name is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class Place(NamedTuple):
    """A rendered call: characters of its name, of its arguments, and where the search for the next one begins."""

    name: tuple[int, int]
    arguments: tuple[int, int]
    end: int


def whole_names(text: str, start: int, end: int, name: str) -> Iterator[int]:
    """Where `name` stands in text[start:end] as a whole name: "add" is not in "add_all", "re-add" or "add.all".

    A namespace may precede it ("functions.add").
    """
    whole = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-]|\.\w)")
    return (match.start() for match in whole.finditer(text, start, end))
