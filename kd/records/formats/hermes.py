"""Hermes and Qwen text, made structured: <tool_call> blocks into tool_calls, <tool_response> blocks into tool messages,
and the <tools> of a system message into declarations, so that the run's own template writes each of them its own way.

    assistant   "Let me look.\\n<tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>"
                Text may stand before the calls, and only there: the chat format has no place for text between or after
                them. A call may be a Python literal ({'name': ...}), as older Hermes data has it.
                An <|endoftext|> at its end, of another tokenizer's making, is no part of it.
    system      The section that offers the tools is cut out: the template writes it again. It goes from a known opening
                ("# Tools", "You are a function calling AI model") or else from <tools>, to </tools> or the </tool_call>
                of its example; what is around it stays.

Within `keeping_text` all of it stays text, for a template that writes neither tools nor calls.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from kd.records.checks import DataError, decode_json
from kd.toolcalls.reader import CALL_CLOSE, CALL_OPEN

_TOOLS_OPEN = re.compile(r"<tools>(?=\s*[^\s<])")  # a preamble may name the empty tags
_TOOLS_CLOSE = "</tools>"
_OPENINGS = ("# Tools", "You are a function calling AI model")
_RESPONSE = re.compile(r"\s*<tool_response>(.*?)</tool_response>\s*", re.DOTALL)
_END_OF_TEXT = re.compile(r"\s*<\|endoftext\|>\s*\Z")  # Glaive's end of turn, written as text
_MAX_LITERAL = 100_000  # characters; Python's parser takes a hundred times the memory
_DECODER = json.JSONDecoder()


_stays_text: ContextVar[bool] = ContextVar("stays text", default=False)


@contextmanager
def keeping_text(keep: bool) -> Iterator[None]:
    """Within it, where `keep`, calls, results and offers stay as they are written; offered tools are declared too."""
    token = _stays_text.set(keep)
    try:
        yield
    finally:
        _stays_text.reset(token)


def from_hermes_messages(messages: list[Any], tools: list[dict], where: str) -> dict:
    """Make text in these messages structured, and return {"messages", "tools"}; other messages stay as they are.

    Raises:
        DataError: a <tool_call> block that is no call, text after one, or a <tools> block that holds no declarations.
    """
    out, tools, stays_text = [], list(tools), _stays_text.get()
    for index, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str):
            out.append(message)
            continue
        role, spot = message.get("role"), f"{where}[{index}]"
        if role == "assistant" and (end := _END_OF_TEXT.search(content)):
            content = content[: end.start()]
            message = {**message, "content": content}
        if stays_text:
            if role == "system" and not tools and (block := _find_tools(content)):
                tools, _ = _split_tools(content, block, spot)
            out.append(message)
        elif role == "assistant" and CALL_OPEN in content and not message.get("tool_calls"):
            text, calls = _split_calls(content, spot)
            out.append({**message, "content": text, "tool_calls": calls})
        elif role == "system" and "<tools>" in content and (block := _find_tools(content)):
            offered, rest = _split_tools(content, block, spot)
            tools = tools or offered
            out += [{**message, "content": rest}] if rest else []
        elif role in ("tool", "user") and "<tool_response>" in content and (results := _responses(content)):
            out += [{**message, "role": "tool", "content": result} for result in results]
        else:
            out.append(message)
    return {"messages": out, "tools": tools}


def _responses(content: str) -> list[str]:
    found, end = [], 0
    while match := _RESPONSE.match(content, end):
        found.append(match[1].strip())
        end = match.end()
    return found if end == len(content) else []


def _find_tools(content: str) -> tuple[int, int] | None:
    """Find [start, end) of the first <tools> block with something in it."""
    opens = _TOOLS_OPEN.search(content)
    close = content.find(_TOOLS_CLOSE, opens.end()) if opens else -1
    return (opens.start(), close + len(_TOOLS_CLOSE)) if opens and close >= 0 else None


def _split_tools(content: str, block: tuple[int, int], where: str) -> tuple[list[dict], str]:
    text = content[block[0] + len("<tools>") : block[1] - len(_TOOLS_CLOSE)].strip()
    try:
        declared = decode_json(text, f"{where}: <tools>")
    except DataError:  # one declaration a line, as Qwen writes them
        declared = [decode_json(line, f"{where}: <tools>") for line in text.splitlines() if line.strip()]
    declared = declared if isinstance(declared, list) else [declared]
    if not all(isinstance(tool, dict) for tool in declared):
        raise DataError(f"{where}: <tools>: function declarations are needed")
    start = min((at for at in (content.find(opening) for opening in _OPENINGS) if 0 <= at < block[0]), default=block[0])
    end = max(block[1], content.rfind(CALL_CLOSE) + len(CALL_CLOSE))
    rest = content[:start].strip() + "\n\n" + content[end:].strip()
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in declared], rest.strip()


def _split_calls(content: str, where: str) -> tuple[str, list[dict]]:
    start = content.find(CALL_OPEN)
    text, calls = content[:start].strip(), []
    while start < len(content):
        if not content.startswith(CALL_OPEN, start):
            raise DataError(
                f"{where}: text after a <tool_call> block ({content[start : start + 40]!r}): the chat format keeps "
                "text before calls only"
            )
        call, end = _call(content, start + len(CALL_OPEN), f"{where}: <tool_call> {len(calls) + 1}")
        calls.append(call)
        start = _skip_space(content, end)
    return text, calls


def _skip_space(text: str, start: int) -> int:
    return next((at for at in range(start, len(text)) if not text[at].isspace()), len(text))


def _call(content: str, start: int, where: str) -> tuple[dict, int]:
    """Read one call; return it and the place after its closing tag."""
    start = _skip_space(content, start)
    try:
        end = _DECODER.raw_decode(content, start)[1]  # braces and tags in its strings are characters
    except (ValueError, RecursionError):
        end = -1
    close = _skip_space(content, end) if end >= 0 else -1
    if close >= 0 and content.startswith(CALL_CLOSE, close):
        call = decode_json(content[start:end], where)
    else:
        close = content.find(CALL_CLOSE, start)
        if close < 0:
            raise DataError(f"{where}: the block is not closed by {CALL_CLOSE}")
        call = _python_literal(content[start:close], where)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise DataError(f"{where}: one object with name and arguments is needed")
    arguments = call.get("arguments", call.get("parameters", {}))
    return {"type": "function", "function": {"name": call["name"], "arguments": arguments}}, close + len(CALL_CLOSE)


def _python_literal(text: str, where: str) -> Any:
    if len(text) > _MAX_LITERAL:
        raise DataError(f"{where}: not JSON, and too long to be read as a Python literal")
    try:
        return decode_json(json.dumps(ast.literal_eval(text.strip()), allow_nan=False), where)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        decode_json(text, where)  # says what is wrong with it as JSON
        raise
