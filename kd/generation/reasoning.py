"""Private reasoning of a teacher: cut out of an answer before anything else sees it.

Fields such as `reasoning_content` are never read. Of the text, and of the arguments of calls, <think> blocks are cut
out: whole ones; all before a closing tag alone, whose opening one the prompt held; all after an opening one alone.
"""

from __future__ import annotations

import re
from typing import Any

from kd.endpoint.chat import Chat
from kd.records.checks import COT_FIELDS, COT_TAG

_BLOCK = re.compile(r"<(think(?:ing)?)>.*?</\1>", re.IGNORECASE | re.DOTALL)
_BEFORE = re.compile(r"\A.*</think(?:ing)?>", re.IGNORECASE | re.DOTALL)
_AFTER = re.compile(r"<think(?:ing)?>.*\Z", re.IGNORECASE | re.DOTALL)


def cut_reasoning(text: str) -> str:
    """Cut the reasoning out of a text."""
    if COT_TAG.search(text) is None:
        return text
    for pattern in (_BLOCK, _BEFORE, _AFTER):
        text = pattern.sub("", text)
    return text.strip()


def clean_chat(chat: Chat, answer: Any) -> tuple[Chat, bool]:
    """Return an answer without reasoning, and whether it had any, in a field or in its text."""
    clean = chat._replace(
        text=cut_reasoning(chat.text), calls=[(cut_reasoning(name), cut_reasoning(given)) for name, given in chat.calls]
    )
    return clean, clean != chat or _has_field(answer)


def _has_field(value: Any) -> bool:
    if isinstance(value, dict):
        return any(
            (key.lower().replace("-", "_") in COT_FIELDS and inner not in (None, "", [], {})) or _has_field(inner)
            for key, inner in value.items()
            if key != "arguments"
        )
    return isinstance(value, list) and any(map(_has_field, value))
