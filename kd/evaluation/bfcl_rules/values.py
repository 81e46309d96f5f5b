"""Check of one argument's value by BFCL's rules: its type, then its value among those that are allowed.

"" among the allowed values says that the argument may be left out. Where the first other one is not of the declared
type it is a variable: its type then counts, and it is compared to the letter.

Comparison is Python's, as BFCL's is: 1 equals 1.0 and true. Texts are compared without case and without any of
` ,./-_*^`, also as items of a list and as values of an object, but no deeper.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from kd.toolcalls.json_values import show_json

Problem = tuple[str, str] | None  # BFCL's name of an error, and words; None where there is none
_IGNORED = re.compile(r"[ ,./\-_*^]")
NoneType = type(None)


def check_value(name: str, value: Any, allowed: Sequence[Any], kind: type, items: type | None) -> Problem:
    """Check a value, read from its literal already.

    Args:
        name: of the argument, for words.
        allowed: values that are right.
        kind: Python type of the declared one; items: that of a list's elements.
    """
    problem = _check_type(name, value, allowed, kind, items)
    if problem:
        return problem
    if not _is_variable(allowed, kind):
        if kind is dict:
            return _check_object(value, allowed)
        if kind is list and items is dict:
            return _check_objects(value, allowed)
        if kind is str:
            texts = [_plain(option) for option in allowed if isinstance(option, str)]
            return None if _plain(value) in texts else _wrong("value_error:string", name, value, allowed)
        if kind is list:
            lists = [[_plain(item) for item in option] for option in allowed if isinstance(option, (list, str))]
            same = [_plain(item) for item in value] in lists
            return None if same else _wrong("value_error:list/tuple", name, value, allowed)
    return None if value in allowed else _wrong("value_error:others", name, value, allowed)


def _first_type(allowed: Sequence[Any]) -> type | None:
    return next((type(option) for option in allowed if option != ""), None)


def _is_variable(allowed: Sequence[Any], kind: type) -> bool:
    return _first_type(allowed) not in (None, kind)


def _check_type(name: str, value: Any, allowed: Sequence[Any], kind: type, items: type | None) -> Problem:
    other = _first_type(allowed)
    simple = ("type_error:simple", f"argument {name!r} must be {_show(kind)}, not {show_json(value)}")
    if type(value) is not kind:
        return None if type(value) is other else simple
    if items is None or any(
        not isinstance(option, list) or all(type(item) in (items, _first_type(option)) for item in value)
        for option in allowed
    ):
        return None
    if type(value) is not other:
        return simple
    return "type_error:nested", f"items of argument {name!r} must be {_show(items)}: {show_json(value)}"


def _check_object(value: dict, allowed: Sequence[Any]) -> Problem:
    problem: Problem = ("dict_checker:unclear", "no object is allowed")
    for option in allowed:
        if option == "":
            continue
        problem = _compare_object(value, option) if isinstance(option, dict) else problem
        if problem is None:
            return None
    return problem


def _compare_object(value: dict, option: dict) -> Problem:
    problem: Problem = None
    for key, item in value.items():
        if key not in option:
            problem = "value_error:dict_key", f"unexpected key {key!r}"
            break
        choices = option[key] if isinstance(option[key], (list, str)) else [option[key]]
        if _plain(item) not in [_plain(choice) for choice in choices]:
            problem = _wrong("value_error:dict_value", key, item, choices)
            break
    for key, choices in option.items():
        if key not in value and not (isinstance(choices, (list, str, dict)) and "" in choices):
            return "value_error:dict_key", f"key {key!r} is missing"
    return problem


def _check_objects(value: list, allowed: Sequence[Any]) -> Problem:
    problem: Problem = ("list_dict_checker:unclear", "no list is allowed")
    for option in allowed:
        if not isinstance(option, (list, str)) or len(value) != len(option):
            problem = "value_error:list_dict_count", "another number of objects in the list"
            continue
        problem = None
        for item, choice in zip(value, option):
            problem = (
                _check_object(item, [choice])
                if isinstance(item, dict)
                else ("type_error:nested", f"no object: {show_json(item)}")
            )
            if problem:
                break
        if problem is None:
            return None
    return problem


def _plain(value: Any) -> Any:
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


def _wrong(error: str, name: str, value: Any, allowed: Sequence[Any]) -> Problem:
    return error, f"{show_json(value)} is not allowed for {name!r}, only {show_json(list(allowed))}"


def _show(kind: type) -> str:
    return {str: "text", dict: "an object", list: "a list", int: "a whole number", float: "a number"}.get(
        kind, "true or false"
    )
