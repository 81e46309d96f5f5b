"""Verdict on an answer's calls by BFCL's rules, with its names of errors, and by the same rules matched fairly.

Right here and wrong there, and the reverse, are known and kept apart:

    parallel calls          BFCL gives each wanted call the first answered one that fits, and fails where that one was
                            needed by a later call (`parallel_178`); `fair` tries every matching
    a broken block          beside right calls BFCL drops it; kd/evaluation/judge.py fails the turn
    a key twice             BFCL reads the last; kd/toolcalls refuses the block, as parsers disagree on which one counts
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kd.evaluation.bfcl_rules.entry import Entry, read_type
from kd.evaluation.bfcl_rules.literals import read_java, read_javascript
from kd.evaluation.bfcl_rules.values import Problem, check_value

_CHECKERS = {
    "simple": "simple_function_checker",
    "multiple": "multiple_function_checker",
    "parallel": "parallel_function_checker_no_order",
}
_JAVA_TYPES = {
    **dict.fromkeys(("byte", "short", "integer", "long"), int),
    **dict.fromkeys(("float", "double"), float),
    **dict.fromkeys(("Array", "ArrayList", "Queue", "Stack"), list),
    **dict.fromkeys(("HashMap", "Hashtable"), dict),
    "boolean": bool,
}
_JAVASCRIPT_TYPES = {"integer": int, "Bigint": int, "float": float, "Boolean": bool, "dict": dict, "array": list}
_PYTHON_TYPES = {
    "integer": int,
    **dict.fromkeys(("float", "number"), float),
    "boolean": bool,
    **dict.fromkeys(("array", "tuple"), list),
    **dict.fromkeys(("dict", "object"), dict),
}
_LISTS = ("Array", "ArrayList", "array", "tuple")


class Verdict(NamedTuple):
    """Verdict on one answer.

    Attributes:
        valid: BFCL's verdict.
        error: its name of the error; "" where valid.
        words: what is wrong.
        fair: valid by any matching of parallel calls.
    """

    valid: bool
    error: str = ""
    words: str = ""
    fair: bool = False


def judge_calls(calls: Sequence[dict[str, Any]], entry: Entry) -> Verdict:
    """Judge calls ({"name", "arguments"}) by an entry; it never raises."""
    if entry.category == "irrelevance":
        error = "irrelevance_error:decoder_success", "it calls where no function fits"
        return _make(error if calls else None)
    if entry.category == "relevance":
        return _make(None if calls else ("relevance_error:decoder_failed", "it does not call"))
    checker = _CHECKERS[entry.category]
    if len(calls) != len(entry.allowed):
        return _make((f"{checker}:wrong_count", f"{len(calls)} calls where {len(entry.allowed)} are wanted"))
    if entry.category != "parallel":
        return _make(_check_call(calls[0], entry.allowed[0], entry))
    fits = [[_check_call(call, wanted, entry) is None for call in calls] for wanted in entry.allowed]
    free = set(range(len(calls)))
    for at, row in enumerate(fits):
        first = next((call for call in sorted(free) if row[call]), None)
        if first is None:
            words = f"no call left fits wanted call {at + 1}"
            return Verdict(False, f"{checker}:cannot_find_match", words, _match_all(fits))
        free.remove(first)
    return Verdict(True, fair=True)


def _make(problem: Problem) -> Verdict:
    return Verdict(True, fair=True) if problem is None else Verdict(False, *problem)


def _match_all(fits: list[list[bool]]) -> bool:
    """Check that each wanted call can have an answered one of its own (augmenting paths)."""
    owner: dict[int, int] = {}

    def find(wanted: int, seen: set[int]) -> bool:
        for call, fit in enumerate(fits[wanted]):
            if fit and call not in seen:
                seen.add(call)
                if call not in owner or find(owner[call], seen):
                    owner[call] = wanted
                    return True
        return False

    return all(find(wanted, set()) for wanted in range(len(fits)))


def _check_call(call: dict[str, Any], wanted: dict[str, dict[str, list[Any]]], entry: Entry) -> Problem:
    """Check one call against one wanted: name, required arguments, each given one, and those that may be left out."""
    name, allowed = next(iter(wanted.items()))
    function = next((one for one in entry.functions if one["name"] == name or entry.category == "simple"), None)
    if function is None or call["name"] != function["name"]:
        return "simple_function_checker:wrong_func_name", f"{call['name']!r} is called, and {name!r} is wanted"
    schema = function.get("parameters") or {}
    properties, given = schema.get("properties") or {}, call["arguments"]
    for key in schema.get("required") or ():
        if key not in given:
            return "simple_function_checker:missing_required", f"argument {key!r} is missing"
    for key, value in given.items():
        if key not in properties or key not in allowed:
            return "simple_function_checker:unexpected_param", f"argument {key!r} is not expected"
        problem = _check_argument(key, value, allowed[key], properties[key], entry)
        if problem:
            return problem
    for key, values in allowed.items():
        if key not in given and "" not in values:
            return "simple_function_checker:missing_optional", f"argument {key!r} is missing, and may not be left out"
    return None


def _check_argument(name: str, value: Any, allowed: list[Any], declared: Any, entry: Entry) -> Problem:
    kind = read_type(declared) or _infer_type(allowed)
    items = None
    if kind in _LISTS:
        items = _read_items(declared, allowed)
    if entry.language != "python":
        if not isinstance(value, str):
            short = "java" if entry.language == "java" else "js"
            return f"type_error:{short}", f"argument {name!r} must be the text of a literal"
        read, types = (read_java, _JAVA_TYPES) if entry.language == "java" else (read_javascript, _JAVASCRIPT_TYPES)
        value = read(value, kind, items)
    else:
        types = _PYTHON_TYPES
        if types.get(kind) is float and type(value) is int and abs(value) < 2**1000:  # past that no float holds it
            value = float(value)
    return check_value(name, value, allowed, types.get(kind, str), types.get(items, str) if items else None)


def _read_items(declared: dict[str, Any], allowed: list[Any]) -> str | None:
    """Return the type of a list's items; None where they are of several, or of one that no schema declares.

    BFCL's schemas always declare one. Where the only items are objects, they are compared as such.
    """
    inner = declared.get("items")
    kind = inner.get("type") if isinstance(inner, dict) else None
    if isinstance(kind, str):
        return kind
    wanted = [item for one in allowed if isinstance(one, list) for item in one]
    objects = wanted and all(isinstance(item, dict) for item in wanted) and read_type(inner) in (None, "object")
    return "dict" if objects else None


def _infer_type(allowed: list[Any]) -> str:
    """Infer a type that no schema declares, which BFCL's always do: objects and lists are compared as such."""
    first = next((value for value in allowed if value != ""), None)
    return "dict" if isinstance(first, dict) else "array" if isinstance(first, list) else "any"
