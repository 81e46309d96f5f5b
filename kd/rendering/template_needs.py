"""Needs of a chat template: changes to messages and tools without which it fails, or leaves a part out.

  text_arguments   a call's arguments are its JSON text, not an object: only where the template fails on the object, or
                   prints it as Python does. A template that writes objects in its own way would write text wrongly
  no_content       a message that only calls has no content at all, rather than an empty one
  short_ids        ids of calls are nine letters and digits, and there is one
  named_ids        ids of calls are functions.NAME:INDEX, counted through the conversation (Kimi writes them for names)
  system_in_user   there is no system role, or only before a user's last message: the system prompt opens the first user
                   message, an empty line after it
  described        every function and every property has a description, be it an empty one
  opened           every property that is an object says that it may have others (JSON Schema's default)
  listed           where no tools are offered there is an empty list of them, rather than none

They are found by rendering one small conversation with each combination, the plainest first, until its call and its
system prompt are in the text. Of a template that writes no call, a chat without tools shows where its system prompt
goes. A template that takes no combination gets plain messages, and its own refusal is then the record's error.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from functools import lru_cache

from kd.rendering.chat_template import REFUSALS, apply_template
from kd.toolcalls.locate import locate_calls
from kd.toolcalls.syntax.registry import SYNTAXES

CHANGES = ("text_arguments", "no_content", "short_ids", "named_ids", "system_in_user")
TOOL_CHANGES = ("described", "opened", "listed")  # each looked for alone, once the changes to messages are found
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_CALL = {"name": "find_place", "arguments": {"place": "Tromsø", "days": 3}}
_PROBE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How long is the way?"},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "call_0", "type": "function", "function": _CALL}]},
    {"role": "tool", "tool_call_id": "call_0", "name": "find_place", "content": "41 km"},
    {"role": "assistant", "content": "It is 41 km."},
]
_CHAT = [_PROBE[0], _PROBE[1], _PROBE[4]]
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
_OBJECT = [
    {
        "type": "function",
        "function": {
            "name": "find_place",
            "parameters": {"type": "object", "properties": {"box": {"type": "object"}}, "required": ["box"]},
        },
    }
]


def template_needs(tokenizer) -> tuple[str, ...]:
    """Find the changes of CHANGES and TOOL_CHANGES that this tokenizer's chat template needs; kept once found."""
    return _needs(TemplateKey(tokenizer, _TOOLS))


class TemplateKey:
    """Tokenizer as a key: equal where its template for `tools`, its special tokens and the call syntaxes are."""

    def __init__(self, tokenizer, tools: list[dict]):
        self.tokenizer = tokenizer
        template = tokenizer.get_chat_template(tools=tools) if tokenizer.chat_template else ""
        self._key = (template, tuple(map(str, tokenizer.special_tokens_map.items())), SYNTAXES.names())

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TemplateKey) and self._key == other._key


@lru_cache(maxsize=64)
def _needs(rendering: TemplateKey) -> tuple[str, ...]:
    for count in range(len(CHANGES) + 1):
        for needs in itertools.combinations(CHANGES, count):
            text = _probe(rendering, needs)
            if "text_arguments" in needs and text is not None:
                plain = _probe(rendering, tuple(change for change in needs if change != "text_arguments"))
                if plain is not None and str(_CALL["arguments"]) not in plain:
                    continue
            if text is not None and _PROBE[0]["content"] in text and locate_calls(text, 0, len(text), [_CALL]):
                return (*needs, *_tool_changes(rendering, needs))
    for needs in ((), ("system_in_user",)):  # a template that writes no calls
        for changes in ((), ("listed",)):
            text = _render(rendering, adapt_messages(_CHAT, needs), adapt_tools([], changes))
            if text is not None and _PROBE[0]["content"] in text:
                return (*needs, *changes)
    return ()


def _tool_changes(rendering: TemplateKey, needs: tuple[str, ...]) -> list[str]:
    chat = [_PROBE[1], _PROBE[4]]
    changes = []
    if _render(rendering, adapt_messages(_PROBE, needs), _TOOLS) is None:
        changes.append("described")  # as the probe's tools were
        if _render(rendering, adapt_messages(_PROBE, needs), adapt_tools(_OBJECT, ("described",))) is None:
            changes.append("opened")
    if _render(rendering, chat, None) is None and _render(rendering, chat, []) is not None:
        changes.append("listed")
    return changes


def render_probe(tokenizer) -> str:
    """Render the probe and a generation prompt as this tokenizer's template needs it; "" where it is refused."""
    needs = template_needs(tokenizer)
    for tools in (adapt_tools(_TOOLS, needs), None):
        for messages in (_PROBE, [_PROBE[1], _PROBE[4]]):
            try:
                return apply_template(tokenizer, adapt_messages(messages, needs), tools, prompt=True)
            except REFUSALS:
                continue
    return ""


def _probe(rendering: TemplateKey, needs: tuple[str, ...]) -> str | None:
    """Render the probe and cut it to its system prompt and its text from the question on; None where refused.

    The tools, which hold the name too, may stand before the question.
    """
    text = _render(rendering, adapt_messages(_PROBE, needs), adapt_tools(_TOOLS, ("described",)))
    if text is None:
        return None
    asked = text.rfind(_PROBE[1]["content"])
    system = _PROBE[0]["content"] if _PROBE[0]["content"] in text else ""
    return system + text[asked:] if asked >= 0 else None


def _render(rendering: TemplateKey, messages: list[dict], tools: list[dict] | None) -> str | None:
    try:
        return apply_template(rendering.tokenizer, messages, tools)
    except REFUSALS:
        return None


def adapt_tools(tools: list[dict], needs: tuple[str, ...]) -> list[dict] | None:
    """Change declarations of tools as the template needs them; None where there are none."""
    if not tools:
        return [] if "listed" in needs else None
    if "described" not in needs:
        return tools
    return [{**tool, "function": _describe(tool["function"], opened="opened" in needs)} for tool in tools]


def _describe(declared: dict, *, opened: bool) -> dict:
    """Add an empty description to a function, or a JSON Schema, that has none, and to all inside it."""
    declared = {"description": "", **declared}
    if isinstance(parameters := declared.get("parameters"), dict):
        declared["parameters"] = _describe(parameters, opened=opened)
    if isinstance(properties := declared.get("properties"), dict):
        declared["properties"] = {
            name: _describe(schema, opened=opened) if isinstance(schema, dict) else schema
            for name, schema in properties.items()
        }
    if opened and declared.get("type") == "object" and declared.get("additionalProperties") in (None, True):
        declared["additionalProperties"] = {}
    return declared


def adapt_messages(messages: list[dict], needs: tuple[str, ...]) -> list[dict]:
    """Change messages as the template needs them; a message that needs no change is the same object.

    With system_in_user there is one message fewer, where the first is a system prompt.
    """
    if not needs:
        return messages
    if "system_in_user" in needs and [message["role"] for message in messages[:2]] == ["system", "user"]:
        opened = {**messages[1], "content": f"{messages[0]['content'].strip()}\n\n{messages[1]['content']}"}
        messages = [opened, *messages[2:]]
    changed, waiting, num_calls = [], [], 0
    new_ids: dict[str, str] = {}
    for index, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = [
                _adapt_call(call, f"{index}.{number}", num_calls + number, needs)
                for number, call in enumerate(message["tool_calls"])
            ]
            num_calls += len(calls)
            waiting = [call.get("id") for call in calls]
            new_ids |= {old["id"]: new["id"] for old, new in zip(message["tool_calls"], calls) if old.get("id")}
            message = {**message, "tool_calls": calls}
            if "no_content" in needs and not message["content"]:
                message["content"] = None
        elif message["role"] == "tool" and ("short_ids" in needs or "named_ids" in needs):
            given = message.get("tool_call_id") or ""
            answered = new_ids.get(given) or (_short(given) if given else next(iter(waiting), _short(str(index))))
            waiting = [identity for identity in waiting if identity != answered]
            message = {**message, "tool_call_id": answered}
        changed.append(message)
    return changed


def _adapt_call(call: dict, default_id: str, number: int, needs: tuple[str, ...]) -> dict:
    """Change one call; `number` counts the conversation's calls before it."""
    if "text_arguments" in needs:
        call = {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
    if "short_ids" in needs:
        call = {**call, "id": _short(call.get("id") or default_id)}
    elif "named_ids" in needs:
        call = {**call, "id": f"functions.{call['function']['name']}:{number}"}
    return call


def _short(identity: str) -> str:
    """Return the id where it is nine letters and digits, else nine hex digits that follow from it."""
    return (
        identity
        if _SHORT_ID.fullmatch(identity)
        else hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:9]
    )
