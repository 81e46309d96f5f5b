"""xLAM records, and APIGen's: {"query": ..., "tools": [...], "answers": [...]}; lists or JSON text."""

from __future__ import annotations

from kd.records.checks import DataError
from kd.records.formats.format import Format, read_calls, read_tools
from kd.records.formats.schemas import from_xlam


def from_xlam_record(data: dict, where: str) -> dict:
    """Convert one record; see Format.convert."""
    tools = read_tools(data.get("tools"), f"{where}: tools")
    for tool in tools:
        if isinstance(tool["function"], dict):
            tool["function"] = {**tool["function"], "parameters": from_xlam(tool["function"].get("parameters"))}
    if not isinstance(data.get("query"), str):
        raise DataError(f"{where}: query: text is needed, not {type(data.get('query')).__name__}")
    calls = read_calls(data.get("answers"), f"{where}: answers")
    if not calls:
        raise DataError(f"{where}: answers: no call, and no answer text either: there is nothing to train on")
    calls = [{"id": f"call_{index}", **call} for index, call in enumerate(calls)]
    return {
        "messages": [
            {"role": "user", "content": data["query"]},
            {"role": "assistant", "content": "", "tool_calls": calls},
        ],
        "tools": tools,
    }


FORMAT = Format(
    detect=lambda data: "query" in data and ("answers" in data or "tools" in data), convert=from_xlam_record, order=30
)
