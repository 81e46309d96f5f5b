"""Change that an answer makes: files and inserted lines, read from its diffs and from its calls that write files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

Change = dict[str, int]
"""Path -> inserted lines, as `git diff --numstat` counts them."""

_PATHS = ("path", "file_path", "filepath", "file", "filename", "target_file")
_TEXTS = ("content", "contents", "new_str", "new_string", "file_text", "insert_text", "text", "code_edit")
_REMOVALS = ("delete", "remove", "move", "rename")
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_GIT = re.compile(r"diff --git a/(\S+) b/(\S+)$")


def read_change(text: str, calls: Sequence[dict[str, Any]]) -> Change:
    """Read the change of an answer; files that several parts change have the sum of their lines.

    Args:
        text: of the answer; unified diffs in it count.
        calls: {"name", "arguments"}; one counts where its arguments name a path and hold text to write, or where it
            removes or moves the path. Diffs in arguments count too.
    """
    change: Change = {}
    for path, count in [*_read_diffs(text), *(pair for call in calls for pair in _read_call(call))]:
        change[path] = change.get(path, 0) + count
    return change


def _read_call(call: dict[str, Any]) -> Iterator[tuple[str, int]]:
    arguments = call["arguments"]
    path = next((value for key in _PATHS if isinstance(value := arguments.get(key), str) and value), None)
    parts = [arguments, *(one for value in arguments.values() if isinstance(value, list) for one in value)]
    written = [
        part[key] for part in parts if isinstance(part, dict) for key in _TEXTS if isinstance(part.get(key), str)
    ]
    if path is not None and (written or any(word in call["name"].lower() for word in _REMOVALS)):
        yield path, sum(len(one.splitlines()) for one in written)
        return
    for value in arguments.values():
        if isinstance(value, str):
            yield from _read_diffs(value)


def _read_diffs(text: str) -> Iterator[tuple[str, int]]:
    """Yield (path, inserted lines) of each file of the unified diffs in a text; a removed file has its old path."""
    path, old, count = "", "", 0
    removed = added = 0  # lines of the hunk that are still to come
    for line in text.splitlines():
        if removed > 0 or added > 0:
            removed -= line[:1] in ("-", " ", "")
            added -= line[:1] in ("+", " ", "")
            count += line.startswith("+")
        elif found := _HUNK.match(line):
            removed, added = (1 if number is None else int(number) for number in found.groups())
        elif found := _GIT.match(line):
            if path:
                yield path, count
            path, old, count = found[2], found[1], 0
        elif line.startswith("--- "):
            old = _strip(line)
        elif line.startswith("+++ "):
            new = _strip(line)
            new = old if new == "/dev/null" else new
            if path and path != new:
                yield path, count
                count = 0
            path = new
    if path:
        yield path, count


def _strip(line: str) -> str:
    name = line[4:].split("\t")[0].strip()
    return name[2:] if name[:2] in ("a/", "b/") else name
