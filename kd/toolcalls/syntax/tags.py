"""Calls as tags: <function=f><parameter=k>v</parameter></function> and its like.

The name stands in an opening tag, as its own name (<f>), after a sign of equality (<function=f>) or as an attribute
(<invoke name="f">), or it is a tag's text (<tool_call>f). The parameters follow at once, in any order, nothing but
space between them, each with its key in one of these places and its value up to a closing tag:

    <parameter=k>v</parameter>   <parameter name="k">v</parameter>   <k>v</k>
                                 <arg_key>k</arg_key><arg_value>v</arg_value>

What stands between the tags must be the value: a string as it is, as JSON, with its markup escaped, or in CDATA;
anything else as JSON or as Python writes it, or as tags inside (<k>v</k> of an object, <item>v</item> of a list).
Templates put space around a value or strip it, so space at its edges does not count. Types are not seen: "5" and 5 are
written alike. ARGS runs from the first parameter's tag to the end of the last one's; without arguments it is empty,
where they would begin.

`TOKENS` are the same with tokens for brackets (Kimi K3): <|open|>argument key="k"<|sep|>v<|close|>argument<|sep|>.
"""

from __future__ import annotations

import html
import json
import re
from functools import lru_cache
from typing import NamedTuple

from kd.toolcalls.json_scan import read_value, skip_space
from kd.toolcalls.json_values import MAX_DEPTH, same_json
from kd.toolcalls.place import Place, find_whole_names

_TAG = r"[^\s<>=/\"']+"
_CHARS_OF_A_TAG = 200  # how far before a name its tag may open
ITEM = "item"


class Part(NamedTuple):
    """Parameter as [start, end) characters: whole, of its key, and of its value without space or quotes around it."""

    key: str
    at: tuple[int, int]
    key_at: tuple[int, int]
    value_at: tuple[int, int]


class Brackets:
    """Brackets of tags, as patterns.

    Args:
        opens, shuts, ends: what opens a tag, opens a closing tag, and ends either.
    """

    def __init__(self, opens: str, shuts: str, ends: str):
        self.opens, self.shuts, self.ends = opens, shuts, ends
        self.name_in_tag = re.compile(rf"{opens}(?:{_TAG}(?:\s[^<>]*?)?=\s*[\"']?)?\Z")  # precedes a name in a tag
        self.rest_of_tag = re.compile(rf"[\"']?(?:\s[^<>]*)?{ends}")
        self.tag_end = re.compile(rf"{ends}\s*\Z")  # precedes a name that is a tag's text
        self.opening = re.compile(rf"\s*{opens}{_TAG}{ends}")
        self.closing = re.compile(rf"\s*{shuts}{_TAG}{ends}")

    def locate(self, text: str, start: int, end: int, name: str, arguments: dict) -> Place | None:
        """Locate the first tagged call in text[start:end] that is this one."""
        found = self.find_call(text, start, end, name, arguments)
        return found and found[0]

    def find_call(self, text: str, start: int, end: int, name: str, arguments: dict) -> tuple[Place, list[Part]] | None:
        """Find a call: (its place, its parameters)."""
        for at in find_whole_names(text, start, end, name):
            after = at + len(name)
            before = text[max(at - _CHARS_OF_A_TAG, start) : at]
            if self.name_in_tag.search(before):
                head = self.rest_of_tag.match(text, after)
                begins = head and (head.end(), _skip_tag(self.opening, text, head.end()))
            else:  # <name>f</name><parameters>: the tag of the name closes, one more may open
                closed = _skip_tag(self.closing, text, after)
                begins = self.tag_end.search(before) and (after, closed, _skip_tag(self.opening, text, closed))
            for begin in begins or ():
                parts = self._find_parts(text, begin, arguments)
                if parts is None or not self.closing.match(text, parts[-1].at[1] if parts else begin):
                    continue
                first, last = (parts[0].at[0], parts[-1].at[1]) if parts else (begin, begin)
                if last <= end:
                    return Place((at, after), (first, last), last), parts
        return None

    def _find_parts(self, text: str, at: int, arguments: dict, depth: int = 0) -> list[Part] | None:
        """Find the parameters that begin at `at`, space apart; None where they are not all of `arguments`."""
        left, parts = dict(arguments), []
        while left:
            opens = skip_space(text, at)
            for key, value in left.items():
                opening = _compile_opening(self.opens, self.shuts, self.ends, key).match(text, opens)
                ends = self._find_value(text, opening.end(), value, depth) if opening else None
                if opening and ends:
                    key_at = text.rfind(key, opens, opening.end())
                    parts.append(Part(key, (opens, ends[2]), (key_at, key_at + len(key)), ends[:2]))
                    break
            else:
                return None
            del left[key]
            at = parts[-1].at[1]
        return parts

    def _find_value(self, text: str, at: int, value: object, depth: int) -> tuple[int, int, int] | None:
        """Find (start, end, end of the closing tag) of the value that begins at `at`; None where that is not it."""
        begin = skip_space(text, at)
        if not isinstance(value, str):
            found = read_value(text, begin)
            if found and same_json(found[0], value) and (closing := self.closing.match(text, found[1])):
                return begin, found[1], closing.end()
        for written in _spellings(value):
            for start in dict.fromkeys((at, at + text.startswith("\n", at), begin)):
                if text.startswith(written, start) and (closing := self.closing.match(text, start + len(written))):
                    return start, start + len(written), closing.end()
        if isinstance(value, (dict, list)) and value and depth < MAX_DEPTH:
            end = self._find_inside(text, at, value, depth + 1)
            if end is not None and (closing := self.closing.match(text, end)):
                return begin, end, closing.end()
        return None

    def _find_inside(self, text: str, at: int, value: dict | list, depth: int) -> int | None:
        """Find the end of an object's or a list's tags that begin at `at`."""
        if isinstance(value, dict):
            parts = self._find_parts(text, at, value, depth)
            return parts[-1].at[1] if parts else None
        for item in value:
            parts = self._find_parts(text, at, {ITEM: item}, depth)
            if parts is None:
                return None
            at = parts[0].at[1]
        return at


@lru_cache(maxsize=4096)
def _compile_opening(opens: str, shuts: str, ends: str, key: str) -> re.Pattern:
    key = "(?:" + "|".join(dict.fromkeys(map(re.escape, (key, html.escape(key))))) + ")"
    return re.compile(
        rf"{opens}{_TAG}={key}{ends}|{opens}{_TAG}\s(?:[^<>]*\s)?{_TAG}=\"{key}\"(?:\s[^<>]*)?{ends}|{opens}{key}{ends}"
        rf"|{opens}({_TAG}){ends}\s*{key}\s*{shuts}\1{ends}\s*{opens}{_TAG}{ends}"
    )


def _skip_tag(tag: re.Pattern, text: str, at: int) -> int:
    found = tag.match(text, at)
    return found.end() if found else at


def _spellings(value: object) -> dict[str, None]:
    """List the ways in which a tag may hold `value`, in the order they are tried."""
    if not isinstance(value, str):
        nothing = {"": None} if value in ([], {}) else {}  # as tags inside, of which there are none
        return {str(value): None, html.escape(json.dumps(value, ensure_ascii=False)): None, **nothing}
    bare = value.strip()
    return dict.fromkeys(
        (
            value,
            bare,
            json.dumps(value, ensure_ascii=False),
            json.dumps(value),
            html.escape(bare),
            html.escape(bare, quote=False),
            html.escape(bare).replace("&quot;", "&#34;").replace("&#x27;", "&#39;"),
            f"<![CDATA[{value}]]>",
        )
    )


XML = Brackets(r"(?:\]<\][^\s<>\[\]]{1,40}\[>\[)?<", r"(?:\]<\][^\s<>\[\]]{1,40}\[>\[)?</", ">")
XTML = Brackets(r"<\|open\|>", r"<\|close\|>", r"<\|sep\|>")
