"""Registry of call syntaxes: the ways to write a call, in the order in which they are tried.

To add one, write a file beside this one that makes a `Syntax`, and name it in SYNTAXES; from outside the package call
`SYNTAXES.register("name", Syntax(locate))` in a module that the run imports before it renders anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kd.registry import Registry
from kd.toolcalls.place import Place

Locate = Callable[[str, int, int, str, dict], Place | None]


@dataclass(frozen=True)
class Syntax:
    """Syntax of calls: its functions; its name is the one it is registered under.

    Attributes:
        locate: (text, start, end, name, arguments) -> place of the first call in text[start:end] that is written in
            this syntax, has this whole name, and whose arguments equal `arguments`; None where there is none. Offsets
            are characters of `text`.
    """

    locate: Locate


SYNTAXES: Registry[Syntax] = Registry(
    "call syntax",
    {
        "object": "kd.toolcalls.syntax.json_object:OBJECT",
        "name_first": "kd.toolcalls.syntax.name_first:NAME_FIRST",
        "tags": "kd.toolcalls.syntax.tags:TAGS",
        "python": "kd.toolcalls.syntax.python_call:PYTHON",
    },
)
