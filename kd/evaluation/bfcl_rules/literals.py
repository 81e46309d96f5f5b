"""Java and JavaScript literals as BFCL reads them: an argument is text, and its declared type says how to read it.

A text that is no literal of its type stays text. What the reading leaves out is kept as it is: elements are split at
every comma, a list ends at the first closing bracket, and elements of a Java array keep their quotes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_MOST_DIGITS = 4000  # Python reads no longer whole number
_WHOLE, _REAL = r"-?\d+", r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_JAVA_NEW = {
    "Array": re.compile(r"new\s+\w+\[\]\s*\{(?P<items>.*?)\}"),
    "asList": re.compile(r"new\s+ArrayList<\w*>\(Arrays\.asList\((?P<items>.+?)\)\)"),
    "added": re.compile(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*(?P<items>.+?)\s*\}\}", re.DOTALL),
    "ArrayList": re.compile(r"new\s+ArrayList<\w*>\(\)"),
    "put": re.compile(r"new\s+HashMap<.*?>\s*\(\)\s*\{\s*\{?\s*(?P<items>.*?)\s*\}?\s*\}", re.DOTALL),
    "HashMap": re.compile(r"new\s+HashMap<.*?>\s*\(\)"),
}
_JAVA_ADD, _JAVA_PUT = re.compile(r"add\((.+?)\)"), re.compile(r'put\("(.*?)",\s*(.*?)\)')
_JS_ROW = r"\[.*?\]"
_JS_ROWS = re.compile(
    rf"\[\s*{_JS_ROW}\s*(?:,\s*{_JS_ROW}\s*)*\]|\bnew\s+Array\(\s*{_JS_ROW}\s*(?:,\s*{_JS_ROW}\s*)*\)"
)
_JS_LIST = re.compile(r"\[(?P<literal>.*?)\]|\bnew\s+Array\((?P<made>.*?)\)")
_JS_OBJECT = re.compile(r"\{(.*?)\}")
_JS_PAIR = re.compile(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)")


def _number(pattern: str, convert: Callable[[str], Any], suffix: int = 0) -> Callable[[str], Any]:
    compiled = re.compile(pattern)

    def read(text: str) -> Any:
        if not compiled.fullmatch(text) or len(text) > _MOST_DIGITS:
            return text
        return convert(text[: len(text) - suffix])

    return read


def _boolean(text: str) -> Any:
    return {"true": True, "false": False}.get(text, text)


_JAVA_SCALARS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("byte", "short", "integer"), _number(_WHOLE, int)),
    "long": _number(_WHOLE + "[lL]", int, 1),
    "float": _number(_REAL + "[fF]", float, 1),
    "double": _number(_REAL, float),
    "boolean": _boolean,
}
_JS_SCALARS: dict[str, Callable[[str], Any]] = {
    "integer": _number(_WHOLE, int),
    "Bigint": _number(_WHOLE + "n", int, 1),
    "float": _number(r"-?\d+(?:\.\d+)?", float),
    "Boolean": _boolean,
}


def read_java(text: str, kind: str, items: str | None = None) -> Any:
    """Read a Java literal of the declared type `kind`; `items` is the type of its elements."""
    if kind in _JAVA_SCALARS:
        return _JAVA_SCALARS[kind](text)
    if kind == "Array":
        found = _JAVA_NEW["Array"].search(text)
        return text if found is None else [read_java(item, items or "any") for item in _split(found["items"])]
    if kind == "ArrayList":
        if found := _JAVA_NEW["asList"].search(text):
            return [_java_item(item.strip(), items) for item in found["items"].split(",")]
        if found := _JAVA_NEW["added"].search(text):
            return [_java_item(item.strip(), items) for item in _JAVA_ADD.findall(found["items"])]
        return [] if _JAVA_NEW["ArrayList"].search(text) else text
    if kind == "HashMap":
        if found := _JAVA_NEW["put"].search(text):
            return {key: _java_value(value.strip()) for key, value in _JAVA_PUT.findall(found["items"])}
        return {} if _JAVA_NEW["HashMap"].search(text) else text
    return text


def read_javascript(text: str, kind: str, items: str | None = None) -> Any:
    """Read a JavaScript literal of the declared type `kind`; `items` is the type of its elements."""
    if kind in _JS_SCALARS:
        return _JS_SCALARS[kind](text)
    if kind == "String":
        return text[1:-1] if _is_quoted(text) else text
    if kind == "array":
        return _js_array(text.strip(), items)
    return _js_object(text.strip()) if kind == "dict" else text


def _split(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _is_quoted(text: str) -> bool:
    return any(text.startswith(mark) and text.endswith(mark) for mark in "\"'")


def _java_item(text: str, kind: str | None) -> Any:
    return text[1:-1] if kind in ("char", "String") else read_java(text, kind) if kind else _java_value(text)


def _java_value(text: str) -> Any:
    """Read a literal of no declared type."""
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    for kind in ("boolean", "long", "float"):
        if not isinstance(value := _JAVA_SCALARS[kind](text), str):
            return value
    return _python_number(text)


def _js_array(text: str, kind: str | None) -> Any:
    if found := _JS_ROWS.match(text):
        rows = [row.strip() for row in re.findall(r"\[(.*?)\]", found[0])]
        rows[:1] = [row.removeprefix("[") for row in rows[:1]]
        return [[_js_value(item) for item in row.split(",")] for row in rows]
    found = _JS_LIST.match(text)
    if found is None:
        return text
    inner = (found["literal"] if found["literal"] is not None else found["made"]).strip()
    items = [item.strip() for item in inner.split(",")] if inner else []
    return [read_javascript(item, kind) if kind else _js_value(item) for item in items]


def _js_object(text: str) -> Any:
    found = _JS_OBJECT.match(text)
    if found is None:
        return text
    pairs = {}
    for name, value in _JS_PAIR.findall(found[1]):
        value = value.strip()
        inner = value[:1] + value[-1:]
        pairs[name.strip().strip("'\"")] = (
            _js_array(value, None)
            if inner == "[]"
            else _js_object(value)
            if inner == "{}"
            else _js_value(value.strip("'\""))
        )
    return pairs


def _js_value(text: str) -> Any:
    """Read a literal of no declared type."""
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    return text[1:-1] if _is_quoted(text) else _python_number(text)


def _python_number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
