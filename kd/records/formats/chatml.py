"""ChatML text: {"text": "<|im_start|>system\\n...<|im_end|>..."}, as Hermes and Qwen write it."""

from __future__ import annotations

import re

from kd.records.checks import DataError
from kd.records.formats.format import Format, find_tools, read_tools
from kd.records.formats.hermes import from_hermes_messages

_HEADER = re.compile(r"\s*<\|im_start\|>[ \t]*(\w+)[ \t]*\n")
_END = "<|im_end|>"


def from_chatml(data: dict, where: str) -> dict:
    """Convert one record; see Format.convert."""
    text = data.get("text")
    if not isinstance(text, str):
        raise DataError(f"{where}: text: text is needed, not {type(text).__name__}")
    messages, end = [], 0
    while (header := _HEADER.match(text, end)) and (close := text.find(_END, header.end())) >= 0:
        messages.append({"role": header[1], "content": text[header.end() : close].strip()})
        end = close + len(_END)
    if text[end:].strip() not in ("", "<|endoftext|>"):
        raise DataError(f"{where}: text: character {end + 1} on is no whole <|im_start|>role ... <|im_end|> turn")
    return from_hermes_messages(messages, read_tools(find_tools(data), f"{where}: tools"), f"{where}: text")


def is_chatml(data: dict) -> bool:
    """Tell text with a turn of ChatML in it from other records."""
    return isinstance(data.get("text"), str) and "<|im_start|>" in data["text"]


FORMAT = Format(detect=is_chatml, convert=from_chatml, order=50)
