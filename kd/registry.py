"""Registry: named things of one kind, ours by import path and a user's own by `register`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Generic, TypeVar, cast

from kd.errors import SpanwiseError

T = TypeVar("T")


class UnknownName(SpanwiseError, KeyError):
    """A name that nothing is registered under."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry(Generic[T]):
    """Things of one kind by name, in the order of registration.

    Args:
        kind: noun for messages, for example "record format".
        builtin: name -> "package.module:attribute", imported when the name is first looked up, so that a room can
            offer choices without importing the rooms that provide them.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str] | None = None):
        self.kind = kind
        self._items: dict[str, T | str] = dict(builtin or {})

    def register(self, name: str, item: T) -> T:
        """Add `item` under `name` and return it.

        Raises:
            SpanwiseError: the name is taken.
        """
        if name in self._items:
            raise SpanwiseError(f"{self.kind} {name!r} is registered already: choose another name")
        self._items[name] = item
        return item

    def unregister(self, name: str) -> None:
        """Remove a name, for tests that add one."""
        del self._items[name]

    def names(self) -> tuple[str, ...]:
        """List every name."""
        return tuple(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __getitem__(self, name: str) -> T:
        """Return what is registered under `name`.

        Raises:
            UnknownName: nothing is; the message lists the names there are.
        """
        if name not in self._items:
            raise UnknownName(f"no {self.kind} {name!r}: choose one of {', '.join(self._items)}")
        item = self._items[name]
        if isinstance(item, str):
            module, _, attribute = item.partition(":")
            item = cast(T, getattr(importlib.import_module(module), attribute))
            self._items[name] = item
        return cast(T, item)
