"""Place of a call in a rendered text, and whole names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class Place(NamedTuple):
    """Place of a rendered call: [start, end) characters of its name and of its arguments, and the end of the call."""

    name: tuple[int, int]
    arguments: tuple[int, int]
    end: int  # the search for the next call begins here


def find_whole_names(text: str, start: int, end: int, name: str) -> Iterator[int]:
    """Yield the offsets in text[start:end] where `name` is a whole name: "add" is in neither "add_all" nor "add.all".

    A namespace may precede it ("functions.add").
    """
    whole = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-]|\.\w)")
    return (match.start() for match in whole.finditer(text, start, end))
