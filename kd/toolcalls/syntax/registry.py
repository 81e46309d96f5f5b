"""Registry of call syntaxes: the ways to write a call, in the order in which they are tried.

To add one, write a file beside this one that makes a `Syntax`, and name it in SYNTAXES; from outside the package call
`SYNTAXES.register("name", Syntax(locate, learn))` in a module that the run imports before it renders anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kd.registry import Registry
from kd.toolcalls.parsed import ParsedCalls
from kd.toolcalls.place import Place
from kd.toolcalls.syntax.frame import Probe
from kd.toolcalls.syntax.sections import Tools

Locate = Callable[[str, int, int, str, dict], Place | None]
Parse = Callable[[str, Tools], ParsedCalls]


@dataclass(frozen=True)
class Syntax:
    """Syntax of calls: its functions; its name is the one it is registered under.

    Attributes:
        locate: (text, start, end, name, arguments) -> place of the first call in text[start:end] that is written in
            this syntax, has this whole name, and whose arguments equal `arguments`; None where there is none. Offsets
            are characters of `text`.
        learn: (probes) -> function from a generated text, and the tools that were offered, to the calls in it, for the
            form in which the probes' template writes this syntax; None where that form is not read. Without it the
            syntax gives spans, and evaluation refuses its templates.
    """

    locate: Locate
    learn: Callable[[Sequence[Probe]], Parse | None] | None = None


SYNTAXES: Registry[Syntax] = Registry(
    "call syntax",
    {
        "object": "kd.toolcalls.syntax.json_object:OBJECT",
        "name_first": "kd.toolcalls.syntax.name_first:NAME_FIRST",
        "tags": "kd.toolcalls.syntax.tag_body:TAGS",
        "python": "kd.toolcalls.syntax.python_call:PYTHON",
        "tokens": "kd.toolcalls.syntax.tag_body:TOKENS",
        "bare_keys": "kd.toolcalls.syntax.bare_keys:BARE_KEYS",
    },
)
