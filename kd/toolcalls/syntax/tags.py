"""Calls as tags: <function=f><parameter=k>v</parameter></function> and its like.

The name stands in an opening tag, as its own name (<f>), after a sign of equality (<function=f>) or as an attribute
(<invoke name="f">), or it is a tag's text (<tool_call>f). The parameters follow at once, in any order, nothing but
space between them, each with its key in one of these places and its value up to a closing tag:

    <parameter=k>v</parameter>   <parameter name="k">v</parameter>   <k>v</k>
                                 <arg_key>k</arg_key><arg_value>v</arg_value>

What stands between the tags must be the value: a string as it is, or as JSON, or with its markup escaped; anything else
as JSON or as Python writes it. Templates put space around a value or strip it, so space at its edges does not count.
Types are not seen: "5" and 5 are written alike. ARGS runs from the first parameter's tag to the end of the last one's;
without arguments it is empty, where they would begin.
"""

from __future__ import annotations

import html
import json
import re
from functools import lru_cache

from kd.toolcalls.json_scan import read_value, skip_space
from kd.toolcalls.json_values import same_json
from kd.toolcalls.place import Place, find_whole_names
from kd.toolcalls.syntax.registry import Syntax

_TAG = r"[^\s<>=/\"']+"
_NAME_IN_TAG = re.compile(rf"<(?:{_TAG}(?:\s[^<>]*?)?=\s*[\"']?)?\Z")  # what precedes a name that is in a tag
_REST_OF_TAG = re.compile(r"[\"']?(?:\s[^<>]*)?>")
_TAG_END = re.compile(r">\s*\Z")  # what precedes a name that is a tag's text
_OPENS = re.compile(rf"\s*<{_TAG}>")
_CLOSES = re.compile(rf"\s*</{_TAG}>")
_CHARS_OF_A_TAG = 200  # how far before a name its tag may open


def locate_tags(text: str, start: int, end: int, name: str, arguments: dict) -> Place | None:
    """Locate the first tagged call in text[start:end] that is this one."""
    for at in find_whole_names(text, start, end, name):
        after = at + len(name)
        before = text[max(at - _CHARS_OF_A_TAG, start) : at]
        if _NAME_IN_TAG.search(before):
            head = _REST_OF_TAG.match(text, after)
            begins = head and (head.end(), _skip_tag(_OPENS, text, head.end()))
        else:  # <name>f</name><parameters>: the tag of the name closes, one more may open
            closed = _skip_tag(_CLOSES, text, after)
            begins = _TAG_END.search(before) and (after, closed, _skip_tag(_OPENS, text, closed))
        for begin in begins or ():
            found = _parameters(text, begin, arguments)
            if found is not None and found[1] <= end:
                return Place((at, after), found, found[1])
    return None


def _skip_tag(tag: re.Pattern, text: str, at: int) -> int:
    found = tag.match(text, at)
    return found.end() if found else at


def _parameters(text: str, at: int, arguments: dict) -> tuple[int, int] | None:
    """Find the characters of the parameters that begin at `at`, space apart.

    None where they are not all of `arguments`, or no closing tag follows.
    """
    left = dict(arguments)
    first, last = None, at
    while left:
        opens = skip_space(text, at)
        for key in left:
            opening = _compile_opening(key).match(text, opens)
            closed = _value_end(text, opening.end(), left[key]) if opening else None
            if closed is not None:
                first, last = (opens if first is None else first), closed
                break
        else:
            return None
        del left[key]
        at = last
    return ((at, at) if first is None else (first, last)) if _CLOSES.match(text, at) else None


@lru_cache(maxsize=4096)
def _compile_opening(key: str) -> re.Pattern:
    key = "(?:" + "|".join(dict.fromkeys(map(re.escape, (key, html.escape(key))))) + ")"
    return re.compile(
        rf"<{_TAG}={key}>|<{_TAG}\s(?:[^<>]*\s)?{_TAG}=\"{key}\"(?:\s[^<>]*)?>|<{key}>|<({_TAG})>\s*{key}\s*</\1>\s*<{_TAG}>"
    )


def _value_end(text: str, at: int, value: object) -> int | None:
    """Find the end of the closing tag of the value that begins at `at`; None where that is not `value`."""
    begins = dict.fromkeys((at, at + text.startswith("\n", at), skip_space(text, at)))
    if not isinstance(value, str):
        found = read_value(text, skip_space(text, at))
        if found and same_json(found[0], value) and (closing := _CLOSES.match(text, found[1])):
            return closing.end()
    for written in _spellings(value):
        for begin in begins:
            if text.startswith(written, begin) and (closing := _CLOSES.match(text, begin + len(written))):
                return closing.end()
    return None


def _spellings(value: object) -> dict[str, None]:
    """List the ways in which a tag may hold `value`, in the order they are tried."""
    if not isinstance(value, str):
        return {str(value): None}
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
        )
    )


TAGS = Syntax(locate_tags)
