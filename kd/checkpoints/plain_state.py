"""Plain state: nested dicts, lists, tuples, numbers, texts and tensors as JSON and named tensors, without pickle."""

from __future__ import annotations

from typing import Any

from torch import Tensor

RANKS = "ranks"  # key of a state that another number of ranks wrote: each one's state, by rank
_TENSOR, _TUPLE, _DICT = "\0tensor", "\0tuple", "\0dict"


def split_state(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON takes it; its tensors are added to `tensors`, and named in their places.

    Raises:
        TypeError: it holds another kind of value.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        name = f"state/{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous()
        return {_TENSOR: name}
    if isinstance(value, tuple):
        return {_TUPLE: [split_state(item, tensors) for item in value]}
    if isinstance(value, list):
        return [split_state(item, tensors) for item in value]
    if isinstance(value, dict):  # as pairs: its keys may be numbers
        return {_DICT: [[split_state(key, tensors), split_state(item, tensors)] for key, item in value.items()]}
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def join_state(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return what `split_state` was given."""
    if isinstance(value, list):
        return [join_state(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == _TENSOR:
        return tensors[content]
    if kind == _TUPLE:
        return tuple(join_state(item, tensors) for item in content)
    return {_hashable(join_state(key, tensors)): join_state(item, tensors) for key, item in content}


def _hashable(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key
