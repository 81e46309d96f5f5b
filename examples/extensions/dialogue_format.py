"""A record format: {"dialogue": [["user", "Hi"], ["call", {"name": ..., "arguments": {...}}], ["result", "21"]]}."""

from kd.config.registries import FORMATS
from kd.records.checks import DataError
from kd.records.formats.format import Format, read_calls, read_tools

ROLES = {"user": "user", "bot": "assistant", "result": "tool"}


def from_dialogue(data, where):
    """Return {"messages", "tools"} in the chat format; raise DataError that names the field which is wrong."""
    messages = []
    for index, (speaker, said) in enumerate(data["dialogue"]):
        if speaker == "call":
            calls = read_calls(said, f"{where}: dialogue[{index}]")
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        elif speaker in ROLES:
            messages.append({"role": ROLES[speaker], "content": said})
        else:
            raise DataError(f"{where}: dialogue[{index}]: {speaker!r} is none of call, {', '.join(ROLES)}")
    return {"messages": messages, "tools": read_tools(data.get("functions"), f"{where}: functions")}


FORMATS.register("dialogue", Format(detect=lambda data: "dialogue" in data, convert=from_dialogue))
