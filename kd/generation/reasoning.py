"""Private reasoning of a teacher: cut out of an answer before anything else sees it.

Fields such as `reasoning_content` are never read. Of the text, and of the arguments of calls, <think> blocks are cut
out: whole ones; all before a closing tag alone, whose opening one the prompt held; all after an opening one alone.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import Any

from kd.endpoint.chat import Chat
from kd.records.checks import COT_FIELDS, COT_TAG

_TAG = re.compile(r"<(/?)(think(?:ing)?)>", re.IGNORECASE)
_BEFORE = re.compile(r"\A.*</think(?:ing)?>", re.IGNORECASE | re.DOTALL)
_AFTER = re.compile(r"<think(?:ing)?>.*\Z", re.IGNORECASE | re.DOTALL)


def cut_reasoning(text: str) -> str:
    """Cut the reasoning out of a text."""
    if COT_TAG.search(text) is None:
        return text
    return _AFTER.sub("", _BEFORE.sub("", _cut_blocks(text))).strip()


def _cut_blocks(text: str) -> str:
    """Cut out each block up to the next closing tag of its name, in one pass: a text may have 100,000 tags."""
    opened, closed = [], {"think": [], "thinking": []}
    for tag in _TAG.finditer(text):
        if tag[1]:
            closed[tag[2].lower()].append(tag)
        else:
            opened.append(tag)
    starts = {name: [tag.start() for tag in tags] for name, tags in closed.items()}
    kept, at = [], 0
    for tag in opened:
        name = tag[2].lower()
        end = bisect_left(starts[name], tag.end())
        if tag.start() >= at and end < len(closed[name]):
            kept.append(text[at : tag.start()])
            at = closed[name][end].end()
    return "".join([*kept, text[at:]])


def clean_chat(chat: Chat, answer: Any) -> tuple[Chat, bool]:
    """Return an answer without reasoning, and whether it had any, in a field or in its text."""
    clean = chat._replace(
        text=cut_reasoning(chat.text), calls=[(cut_reasoning(name), cut_reasoning(given)) for name, given in chat.calls]
    )
    return clean, clean != chat or _has_field(answer)


def _has_field(answer: Any) -> bool:
    waiting = [answer]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        for key, inner in value.items() if isinstance(value, dict) else ():
            if key.lower().replace("-", "_") in COT_FIELDS and inner not in (None, "", [], {}):
                return True
            if key != "arguments":
                waiting.append(inner)
    return False
