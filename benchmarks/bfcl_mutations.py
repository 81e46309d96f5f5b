"""Answers to BFCL's entries, made from their own truth by mutation: right ones, and wrong in one way each."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

Call = dict[str, Any]  # {"name", "arguments"}
Allowed = dict[str, dict[str, list[Any]]]  # {name: {argument: [values]}}
_LEFT_OUT = object()


def make_answers(entry: dict[str, Any], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield (mutation, text) for an entry of benchmarks/bfcl_checker.py, each text once."""
    seen = set()
    for name, text in _make_texts(entry, rng):
        if text not in seen:
            seen.add(text)
            yield name, text


def _make_texts(entry: dict[str, Any], rng: random.Random) -> Iterator[tuple[str, str]]:
    yield "no call", "I cannot help with that."
    yield "nothing", ""
    if not entry["truth"]:
        calls = [{"name": function["name"], "arguments": {}} for function in entry["function"][:1]]
        yield "a call", _write(calls)
        yield "broken JSON", _write(calls)[:-15] + "\n</tool_call>"
        yield "unfinished", _write(calls)[:-14]
        yield "two calls", _write(calls * 2)
        return
    right = [_choose(allowed, entry, _first) for allowed in entry["truth"]]
    yield "right", _write(right)
    yield from _make_whole(right)
    if "java" in entry["category"]:
        yield "other spelling", _write([_choose(a, entry, _first, respell=True) for a in entry["truth"]])
    yield "other alternatives", _write([_choose(a, entry, lambda v: v[-1]) for a in entry["truth"]])
    yield "any alternatives", _write([_choose(a, entry, rng.choice) for a in entry["truth"]])
    at = rng.randrange(len(right))
    for name, change in _CALL_CHANGES.items():
        calls = copy.deepcopy(right)
        if change(calls[at], entry["truth"][at], rng):
            yield name, _write(calls)
    for name, change in _VALUE_CHANGES.items():
        options = [key for key, value in right[at]["arguments"].items() if change(value) is not _LEFT_OUT]
        if options:
            calls, key = copy.deepcopy(right), rng.choice(options)
            calls[at]["arguments"][key] = change(right[at]["arguments"][key])
            yield name, _write(calls)


def _make_whole(right: list[Call]) -> Iterator[tuple[str, str]]:
    """Yield changes of the whole answer, and of its text."""
    text = _write(right)
    yield "text before", "Let me look.\n" + text
    yield "unfinished", text[:-14]
    yield "broken JSON", text.replace("}\n</tool_call>", "\n</tool_call>", 1)
    yield "broken block beside", text + '\n<tool_call>\n{"name": "f", "arguments": {\n</tool_call>'
    yield "call twice", _write([*right, right[-1]])
    yield "one call less", _write(right[:-1])
    yield "bare JSON", json.dumps(right[0])
    if right[0]["arguments"]:
        key = json.dumps(next(iter(right[0]["arguments"])))
        yield "key twice", text.replace('"arguments": {', f'"arguments": {{{key}: "first", ', 1)
    if len(right) > 1:
        yield "other order", _write(right[::-1])
        yield "rotated", _write(right[1:] + right[:1])
        swapped = copy.deepcopy(right)
        swapped[0]["arguments"], swapped[1]["arguments"] = right[1]["arguments"], right[0]["arguments"]
        yield "arguments swapped", _write(swapped)
        yield "first for all", _write([right[0]] * len(right))


def _write(calls: list[Call]) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


def _first(values: list[Any]) -> Any:
    return next((value for value in values if value != ""), _LEFT_OUT)


def _choose(
    allowed: Allowed, entry: dict[str, Any], pick: Callable[[list[Any]], Any], *, respell: bool = False
) -> Call:
    """Choose a value for each argument; "" leaves one out that is not required. respell: literals in another form."""
    name, arguments = next(iter(allowed.items()))
    schema = next((f["parameters"] for f in entry["function"] if f["name"] == name), entry["function"][0]["parameters"])
    given = {}
    for key, values in arguments.items():
        value = pick(values) if values else _LEFT_OUT
        if value is _LEFT_OUT or value == "" and key not in schema["required"]:
            continue
        value = _choose_inner(value, pick)
        if "java" in entry["category"]:
            write = _write_javascript if "javascript" in entry["category"] else _write_java
            value = write(value, schema["properties"].get(key, {}), respell)
        given[key] = value
    return {"name": name, "arguments": given}


def _choose_inner(value: Any, pick: Callable[[list[Any]], Any]) -> Any:
    """Choose inside objects, whose values are alternatives again."""
    if isinstance(value, dict):
        chosen = {k: pick(v) if isinstance(v, list) and v else v for k, v in value.items()}
        return {key: inner for key, inner in chosen.items() if inner is not _LEFT_OUT and inner != ""}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [_choose_inner(item, pick) for item in value]
    return value


def _write_plain(value: Any, suffix: str) -> str | None:
    """Write a text, truth or number; None for another."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value}{suffix}" if value is None or isinstance(value, (int, float)) else None


def _write_java(value: Any, declared: dict[str, Any], respell: bool) -> str:
    """Write a value as a literal of its declared type."""
    kind = declared.get("type", "any")
    plain = _write_plain(value, {"long": "l" if respell else "L", "float": "F" if respell else "f"}.get(kind, ""))
    if plain is not None:
        return plain
    items = [json.dumps(item) for item in value] if isinstance(value, list) else []
    if kind == "Array":
        bare = declared.get("items", {}).get("type") == "String"  # its elements keep their quotes
        joined = ", ".join(str(item) if bare else text for item, text in zip(value, items))
        return f"new Object[] {{ {joined} }}" if respell else f"new Object[]{{{joined}}}"
    if kind == "ArrayList" and items and respell:
        return f"new ArrayList<Object>() {{{{ {' '.join(f'add({item});' for item in items)} }}}}"
    if kind == "ArrayList":
        return f"new ArrayList<>(Arrays.asList({', '.join(items)}))" if items else "new ArrayList<>()"
    puts = "; ".join(f'put("{key}", {json.dumps(item)})' for key, item in dict(value).items())
    return f"new HashMap<>(){{{{ {puts}; }}}}" if respell else f"new HashMap<String, Object>() {{{{ {puts}; }}}}"


def _write_javascript(value: Any, declared: dict[str, Any], respell: bool) -> str:
    """Write a value as a literal of its declared type."""
    plain = _write_plain(value, "n" if declared.get("type") == "Bigint" else "")
    if plain is not None:
        return f"'{plain}'" if respell and isinstance(value, str) else plain
    if respell and isinstance(value, list):
        return f"new Array({', '.join(json.dumps(item) for item in value)})"
    return json.dumps(value).replace('"', "'" if respell else '"')


def _leave_out(call: Call, keys: list[str], rng: random.Random) -> bool:
    keys = [key for key in keys if key in call["arguments"]]
    if keys:
        del call["arguments"][rng.choice(keys)]
    return bool(keys)


def _rename(call: Call, allowed: Allowed, rng: random.Random) -> bool:
    call["name"] += "_x"
    return True


def _add(call: Call, allowed: Allowed, rng: random.Random) -> bool:
    call["arguments"]["not_there"] = "1"
    return True


def _leave_out_optional(call: Call, allowed: Allowed, rng: random.Random) -> bool:
    return _leave_out(call, [key for key, values in allowed[call["name"]].items() if "" in values], rng)


def _leave_out_other(call: Call, allowed: Allowed, rng: random.Random) -> bool:
    return _leave_out(call, [key for key, values in allowed[call["name"]].items() if "" not in values], rng)


def _leave_all_optional(call: Call, allowed: Allowed, rng: random.Random) -> bool:
    keys = [key for key, values in allowed[call["name"]].items() if "" in values and key in call["arguments"]]
    for key in keys:
        del call["arguments"][key]
    return bool(keys)


def _make_empty(call: Call, allowed: Allowed, rng: random.Random, value: Any = "") -> bool:
    keys = [key for key, values in allowed[call["name"]].items() if "" in values]
    if keys:
        call["arguments"][rng.choice(keys)] = value
    return bool(keys)


def _reverse_keys(call: Call, allowed: Allowed, rng: random.Random) -> bool:
    call["arguments"] = dict(reversed(call["arguments"].items()))
    return len(call["arguments"]) > 1


_CALL_CHANGES: dict[str, Callable[[Call, Allowed, random.Random], bool]] = {
    "wrong name": _rename,
    "extra argument": _add,
    "optional left out": _leave_out_optional,
    "all optional left out": _leave_all_optional,
    "wanted argument left out": _leave_out_other,
    "optional empty": _make_empty,
    "optional an empty list": lambda call, allowed, rng: _make_empty(call, allowed, rng, []),
    "optional an empty object": lambda call, allowed, rng: _make_empty(call, allowed, rng, {}),
    "optional null": lambda call, allowed, rng: _make_empty(call, allowed, rng, None),
    "keys in other order": _reverse_keys,
    "no arguments": lambda call, allowed, rng: bool(call["arguments"]) and not call["arguments"].clear(),
}


def _when(kinds: Any, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: change(value) if type(value) in kinds else _LEFT_OUT


def _space(text: str) -> str:
    return "".join(f" {c}-" if c == "e" else c for c in text) + "."


_VALUE_CHANGES: dict[str, Callable[[Any], Any]] = {
    "null": lambda value: None,
    "another text": _when((str,), lambda text: text + "x"),
    "other case": _when((str,), str.swapcase),
    "punctuation": _when((str,), _space),
    "quotes": _when((str,), lambda text: f"'{text}'"),
    "long literal": _when((str,), lambda text: text + "L"),
    "float literal": _when((str,), lambda text: text + "f"),
    "in brackets": _when((str,), lambda text: f"[{text}]"),
    "in rows": _when((str,), lambda text: f"[[{text}, 1], [{text}]]"),
    "in braces": _when((str,), lambda text: f"{{a: {text}, 'b': [1, \"x\"]}}"),
    "in a new array": _when((str,), lambda text: f"new int[]{{{text}, 2}}"),
    "in a new list": _when((str,), lambda text: f"new ArrayList<>(Arrays.asList({text}, 2))"),
    "in an added list": _when((str,), lambda text: f"new ArrayList<Integer>() {{{{ add({text}); add(1L); }}}}"),
    "in a new map": _when((str,), lambda text: f'new HashMap<>() {{{{ put("a", {text}); put("b", 1.5f); }}}}'),
    "text as number": _when((str,), lambda text: 7),
    "text in a list": _when((str,), lambda text: [text]),
    "number as text": _when((int, float), str),
    "another number": _when((int, float), lambda number: number + 1),
    "float for integer": _when((int,), float),
    "integer for float": _when((float,), int),
    "true for a number": _when((int, float), lambda number: True),
    "other truth": _when((bool,), lambda value: not value),
    "truth as text": _when((bool,), lambda value: str(value).lower()),
    "truth as number": _when((bool,), int),
    "list turned round": _when((list,), lambda items: items[::-1]),
    "list without its last": _when((list,), lambda items: items[:-1] if items else _LEFT_OUT),
    "list with an item more": _when((list,), lambda items: [*items, *items[-1:]] if items else [""]),
    "empty list": _when((list,), lambda items: []),
    "items as text": _when((list,), lambda items: [str(item) for item in items]),
    "items in other case": _when((list,), lambda items: [i.upper() if isinstance(i, str) else i for i in items]),
    "items as float": _when((list,), lambda items: [float(i) if type(i) is int else i for i in items]),
    "items as integer": _when((list,), lambda items: [int(i) if type(i) is float else i for i in items]),
    "one item of another type": _when((list,), lambda items: [*items[:-1], {"a": 1}]),
    "list as text": _when((list,), json.dumps),
    "list as object": _when((list,), lambda items: {"0": items}),
    "object without its last key": _when((dict,), lambda value: dict(list(value.items())[:-1])),
    "object with a key more": _when((dict,), lambda value: {**value, "not_there": 1}),
    "empty object": _when((dict,), lambda value: {}),
    "object with another value": _when((dict,), lambda value: dict.fromkeys(value, "x")),
    "object in other case": _when(
        (dict,), lambda value: {k: v.upper() if isinstance(v, str) else v for k, v in value.items()}
    ),
    "object as text": _when((dict,), json.dumps),
    "object in a list": _when((dict,), lambda value: [value]),
    "objects with a key more": _when(
        (list,),
        lambda items: (
            [{**item, "not_there": 1} for item in items]
            if items and all(isinstance(item, dict) for item in items)
            else _LEFT_OUT
        ),
    ),
    "objects without a key": _when(
        (list,),
        lambda items: (
            [dict(list(item.items())[1:]) for item in items]
            if items and all(isinstance(item, dict) for item in items)
            else _LEFT_OUT
        ),
    ),
}
