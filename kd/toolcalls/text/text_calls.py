"""Calls that an assistant writes as text, for records whose turns have no `tool_calls`.

    functioncall   <functioncall> {"name": "f", "arguments": '{"city": "Paris"}'}    Glaive
    react          Action: f / Action Input: {"city": "Paris"}, a line each           ReAct
    python         [f(city="Paris"), g()], alone in the text                          ToolACE, Llama
    object         {"name": "f", "arguments": {"city": "Paris"}}, in <tool_call> or bare (kd/toolcalls/json_scan.py)

A text is read in the first of these that finds a call in it. A call is one where it names a tool on offer, and its
arguments are written whole; where no tools are offered, any name is one, but not as Python. What names a tool in the
shape of a call and is not read as one is a mention: its name before a parenthesis or brace, in a tag, after `Action:`,
or as the value of "name". Calls read and mentions together are what recall is measured over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from kd.registry import Registry
from kd.toolcalls.json_scan import TextCall

ReadText = Callable[[str, Collection[str]], list[TextCall]]  # (text, names of the tools) -> calls, left to right

TEXT_SYNTAXES: Registry[ReadText] = Registry(
    "text call syntax",
    {
        "functioncall": "kd.toolcalls.text.functioncall:read_functioncall",
        "react": "kd.toolcalls.text.react:read_react",
        "python": "kd.toolcalls.text.python_list:read_python_list",
        "object": "kd.toolcalls.json_scan:find_text_calls",
    },
)
_MARK = re.compile(
    r"<(?:functioncall|tool_call)>[^}]{0,200}|^[ \t]*Action[ \t]*:.*\n[ \t]*Action Input[ \t]*:", re.MULTILINE
)
_FILLING = re.compile(r"(?:[\s\[\],;]|```\w*|</?tool_calls?>)*")
_OPENING = re.compile(r"(?:```\w{0,20}|<tool_calls?>)\Z")


class Mention(NamedTuple):
    """Text in the shape of a call that is not read as one: [start, end) characters."""

    start: int
    end: int


def offered_names(tools: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """List the names of declared tools."""
    functions = (tool.get("function") for tool in tools)
    return tuple(f["name"] for f in functions if isinstance(f, dict) and f.get("name"))


def read_text_calls(text: str, tools: Sequence[dict[str, Any]]) -> list[TextCall]:
    """Read the calls in an assistant's text, left to right."""
    names = offered_names(tools)
    if "{" not in text and "(" not in text:
        return []
    for syntax in TEXT_SYNTAXES.names():
        if calls := TEXT_SYNTAXES[syntax](text, names):
            return calls
    return []


def find_mentions(text: str, tools: Sequence[dict[str, Any]], calls: Sequence[TextCall]) -> list[Mention]:
    """Find what is written in the shape of a call of an offered tool, and is in none of `calls`, which were read."""
    names = tuple(name for name in offered_names(tools) if name in text)
    found = [match.span() for match in _MARK.finditer(text)] if not calls else []
    if names:
        found += [match.span() for match in _compile_shapes(names).finditer(text)]
    mentions: list[Mention] = []
    for start, end in sorted(found):
        inside = any(call.start < end and start < call.end for call in calls)
        if not inside and not (mentions and start < mentions[-1].end):
            mentions.append(Mention(start, end))
    return mentions


@lru_cache(maxsize=256)
def _compile_shapes(names: tuple[str, ...]) -> re.Pattern[str]:
    name = "(?:" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + ")"
    return re.compile(
        rf"(?<![\w.-]){name}(?:\.\w+)?\(|(?<![\w-]){name}(?::\d+)?\s*(?:\[ARGS\]\s*)?\{{\s*[\"'}}]"
        rf"|[\"'](?:name|function|tool|tool_name|action)[\"']\s*:\s*[\"']{name}[\"']"
        rf"|^[ \t>*]*Action\s*:\s*`?{name}(?![\w-])|<(?:[\w:|]+(?:\s+\w+)?=?[\"']?)?{name}[\"']?\s*/?>",
        re.MULTILINE,
    )


def split_text_calls(text: str, calls: Sequence[TextCall]) -> str | None:
    """Return the text before the calls; None where there is text between or after them."""
    ends = [call.end for call in calls]
    starts = [*(call.start for call in calls[1:]), len(text)]
    if not all(_FILLING.fullmatch(text, end, start) for end, start in zip(ends, starts)):
        return None
    before = text[: calls[0].start].rstrip("[ \t\r\n")
    opening = _OPENING.search(before, max(len(before) - 24, 0))
    return (before[: opening.start()] if opening else before).rstrip()
