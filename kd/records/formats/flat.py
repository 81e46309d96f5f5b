"""Flat records, of the first system: {"prompt": ..., "teacher_text": ...}.

Their token ids carry no positions and are dropped: spans are found again in the rendered text.
"""

from __future__ import annotations

from kd.records.checks import DataError
from kd.records.formats.format import Format, find_tools, read_tools
from kd.records.formats.hermes import from_hermes_messages


def from_flat(data: dict, where: str) -> dict:
    """Convert one record; see Format.convert."""
    prompt, text = data.get("prompt"), data.get("teacher_text")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise DataError(f"{where}: prompt: text, or a list of messages, is needed")
    if not isinstance(text, str):
        raise DataError(f"{where}: teacher_text: text is needed, not {type(text).__name__}")
    more = {
        "quality": data.get("quality", data.get("teacher_quality_score")),
        "meta": data.get("meta", data.get("metadata")),
    }
    chat = from_hermes_messages(
        [*prompt, {"role": "assistant", "content": text}], read_tools(find_tools(data), f"{where}: tools"), where
    )
    return {**{key: value for key, value in more.items() if value is not None}, **chat}


FORMAT = Format(detect=lambda data: "teacher_text" in data, convert=from_flat, order=20)
