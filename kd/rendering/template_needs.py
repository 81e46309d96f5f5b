"""The form in which a chat template takes messages and tools.

Templates disagree on a few things, and a template given the wrong one fails, or leaves a part out without a word:

  text_arguments   a call's arguments are its JSON text, not an object: only where the template fails on the object, or
                   prints it as Python does. One that writes objects in a way of its own would write the text wrongly
  no_content       a message that only calls has no content at all, rather than an empty one
  short_ids        ids of calls are nine letters and digits, and there is one
  system_in_user   there is no system role, or only before a user's last message: the system prompt opens the first user
                   message, an empty line after it
  described        every function and every property has a description, be it an empty one
  listed           where no tools are offered there is an empty list of them, rather than none

Which form a template takes is found by rendering one small conversation, in each combination, plainest first, until its
call and its system prompt are in the text. A template that takes none gets the plain form, and its own refusal is then
what a record is told.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from functools import lru_cache

from jinja2 import TemplateError

from kd.rendering.chat_template import apply_template
from kd.toolcalls.locate import locate_calls

CHANGES = ("text_arguments", "no_content", "short_ids", "system_in_user")
TOOL_CHANGES = ("described", "listed")  # each looked for alone, once the messages' form is found
_REFUSALS = (TemplateError, TypeError, ValueError, KeyError, AttributeError)
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_CALL = {"name": "find_place", "arguments": {"place": "Tromsø", "days": 3}}
_PROBE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How long is the way?"},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "call_0", "type": "function", "function": _CALL}]},
    {"role": "tool", "tool_call_id": "call_0", "name": "find_place", "content": "41 km"},
    {"role": "assistant", "content": "It is 41 km."},
]
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_place",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["place"],
            },
        },
    }
]


def template_form(tokenizer) -> tuple[str, ...]:
    """The changes of CHANGES and TOOL_CHANGES that this tokenizer's chat template needs."""
    template = tokenizer.get_chat_template(tools=_TOOLS) if tokenizer.chat_template else ""
    return _form(_Rendering(tokenizer, template))


class _Rendering:
    """A tokenizer as a key: equal where the template and the special tokens it may write are."""

    def __init__(self, tokenizer, template: str):
        self.tokenizer = tokenizer
        self._key = (template, tuple(map(str, tokenizer.special_tokens_map.items())))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rendering) and self._key == other._key


@lru_cache(maxsize=64)
def _form(rendering: _Rendering) -> tuple[str, ...]:
    for count in range(len(CHANGES) + 1):
        for form in itertools.combinations(CHANGES, count):
            text = _probed(rendering, form)
            if "text_arguments" in form and text is not None:
                plain = _probed(rendering, tuple(change for change in form if change != "text_arguments"))
                if plain is not None and str(_CALL["arguments"]) not in plain:
                    continue
            if text is not None and _PROBE[0]["content"] in text and locate_calls(text, 0, len(text), [_CALL]):
                return (*form, *_tool_changes(rendering, form))
    return ()


def _tool_changes(rendering: _Rendering, form: tuple[str, ...]) -> list[str]:
    chat = [_PROBE[1], _PROBE[4]]
    changes = []
    if _rendered(rendering, in_form(_PROBE, form), _TOOLS) is None:
        changes.append("described")  # as the probe's tools were
    if _rendered(rendering, chat, None) is None and _rendered(rendering, chat, []) is not None:
        changes.append("listed")
    return changes


def _probed(rendering: _Rendering, form: tuple[str, ...]) -> str | None:
    """The probe from its question on (the tools, which hold the name too, may stand before), its system prompt first;
    None where refused.
    """
    text = _rendered(rendering, in_form(_PROBE, form), tools_in_form(_TOOLS, ("described",)))
    if text is None:
        return None
    asked = text.rfind(_PROBE[1]["content"])
    system = _PROBE[0]["content"] if _PROBE[0]["content"] in text else ""
    return system + text[asked:] if asked >= 0 else None


def _rendered(rendering: _Rendering, messages: list[dict], tools: list[dict] | None) -> str | None:
    try:
        return apply_template(rendering.tokenizer, messages, tools)
    except _REFUSALS:
        return None


def tools_in_form(tools: list[dict], form: tuple[str, ...]) -> list[dict] | None:
    """The declarations as the template takes them."""
    if not tools:
        return [] if "listed" in form else None
    return [{**tool, "function": _described(tool["function"])} for tool in tools] if "described" in form else tools


def _described(declared: dict) -> dict:
    """A function, or a JSON Schema, with a description, and so on for what is inside it."""
    declared = {"description": "", **declared}
    if isinstance(parameters := declared.get("parameters"), dict):
        declared["parameters"] = _described(parameters)
    if isinstance(properties := declared.get("properties"), dict):
        declared["properties"] = {
            name: _described(schema) if isinstance(schema, dict) else schema for name, schema in properties.items()
        }
    return declared


def in_form(messages: list[dict], form: tuple[str, ...]) -> list[dict]:
    """`messages` with the changes of `form`; those that need none are the same objects. With system_in_user there is
    one fewer.
    """
    if not form:
        return messages
    if "system_in_user" in form and [message["role"] for message in messages[:2]] == ["system", "user"]:
        opened = {**messages[1], "content": f"{messages[0]['content'].strip()}\n\n{messages[1]['content']}"}
        messages = [opened, *messages[2:]]
    changed, waiting = [], []
    for index, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = [_call(call, f"{index}.{number}", form) for number, call in enumerate(message["tool_calls"])]
            waiting = [call.get("id") for call in calls]
            message = {**message, "tool_calls": calls}
            if "no_content" in form and not message["content"]:
                message["content"] = None
        elif message["role"] == "tool" and "short_ids" in form:
            answered = (
                _short(message["tool_call_id"])
                if message.get("tool_call_id")
                else next(iter(waiting), _short(str(index)))
            )
            waiting = [identity for identity in waiting if identity != answered]
            message = {**message, "tool_call_id": answered}
        changed.append(message)
    return changed


def _call(call: dict, default_id: str, form: tuple[str, ...]) -> dict:
    if "text_arguments" in form:
        call = {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
    if "short_ids" in form:
        call = {**call, "id": _short(call.get("id") or default_id)}
    return call


def _short(identity: str) -> str:
    """The id itself where it is nine letters and digits, else nine that follow from it."""
    return (
        identity
        if _SHORT_ID.fullmatch(identity)
        else hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:9]
    )
