"""Calls as a name, something else, and the arguments as a JSON object: [TOOL_CALLS]f[ARGS]{...}.

Also DeepSeek's and Kimi's marker tokens, and gpt-oss's channels. ARGS is the object. The name must stand whole and once
between the call before and the arguments, and what is between the two must be marks, not a sentence.

In a channel (to=functions.f ... <|message|>{...}) the words of the header come in any order, as harmony allows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kd.toolcalls.json_scan import find_braces, read_value, skip_space
from kd.toolcalls.json_values import same_json
from kd.toolcalls.place import Place, find_whole_names
from kd.toolcalls.syntax.frame import Probe, compile_words, find_frame, find_units
from kd.toolcalls.syntax.registry import Parse, Syntax
from kd.toolcalls.syntax.sections import Source, Unit, read_sections
from kd.toolcalls.syntax.strict_json import JsonProblem, explain, find_excess, read_json

MAX_NAME = 200  # characters
_MAX_BETWEEN = 300  # characters between a name and its arguments
_MARK = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|```\w*")
_SENTENCE = re.compile(r"[.,;!?](?:\s|\Z)|\w\s+\w+\s+\w+\s+\w")
_CHANNEL_END = "<|message|>"
_CHANNEL = re.compile(rf"[\s<][^{{}}\[\]]{{0,{_MAX_BETWEEN}}}?(?<={re.escape(_CHANNEL_END)})")
_NAME = re.compile(rf"[^\s<>{{}}\[\]()\"'|,=]{{1,{MAX_NAME}}}")


def locate_name_first(text: str, start: int, end: int, name: str, arguments: dict) -> Place | None:
    """Locate the first JSON object that equals the arguments, and the one place before it where the name stands."""
    for brace in find_braces(text, start, end):
        found = read_value(text, brace)
        if found is None or found[1] > end or not same_json(found[0], arguments):
            continue
        names = list(find_whole_names(text, start, brace, name))
        if len(names) > 1:
            return None  # one of them is the template's own word, and nothing says which
        if names:
            between = text[names[0] + len(name) : brace]
            if len(between) > _MAX_BETWEEN or _SENTENCE.search(_MARK.sub(" ", between)):
                return None  # the assistant's own words, and the name in them
            return Place((names[0], names[0] + len(name)), (brace, found[1]), found[1])
    return None


@dataclass(frozen=True)
class NameBody:
    """Call as a name, words of the template (`between`), and a JSON object."""

    between: re.Pattern[str]
    words: str
    head: str
    noun: str = "arguments"

    def read(self, source: Source, at: int) -> Unit:
        """Read one name and its arguments."""
        named = self._name(source.text, at)
        if named is None:
            return Unit(None, at, f"no name before {self.words!r}", whole=False)
        name, begin = named
        try:
            arguments, end = read_json(source.text, begin)
        except JsonProblem as problem:
            return Unit(None, at, explain(problem, at), whole=False)
        if not isinstance(arguments, dict):
            return Unit(None, end, "the arguments are no JSON object")
        call = {"name": name, "arguments": arguments}
        excess = find_excess(call)
        return Unit(None, end, excess) if excess else Unit(call, end)

    def mend(self, source: Source, start: int, end: int) -> dict | None:
        """Read damaged arguments as json-repair understands them."""
        named = self._name(source.text, start)
        value = source.mender.mend(source.text[named[1] : end]) if named and named[1] < end else None
        return {"name": named[0], "arguments": value} if named and isinstance(value, dict) else None

    def _name(self, text: str, at: int) -> tuple[str, int] | None:
        """Read the name at `at`: (name, begin of the arguments)."""
        at = skip_space(text, at)
        name = _NAME.match(text, at)
        if name and self.between is _CHANNEL:
            found = self.between.match(text, name.end())
        else:
            found = self.between.search(text, at + 1, at + MAX_NAME + _MAX_BETWEEN)
        if found is None or not _NAME.fullmatch(text, at, found.start()):
            return None
        return text[at : found.start()], skip_space(text, found.end())


def learn_name_first(probes: Sequence[Probe]) -> Parse | None:
    """Learn the words between name and arguments, and the frame, from probes."""
    between: list[str] = []

    def find(probe: Probe, at: int, call: dict) -> tuple[int, int] | None:
        place = locate_name_first(probe.text, at, len(probe.text), call["name"], call["arguments"])
        if place is None:
            return None
        between.append(probe.text[place.name[1] : place.arguments[0]])
        return place.name[0], place.arguments[1]

    units = find_units(probes, find)
    if units is None:
        return None
    if not between or not all(words.strip() or "\n" in words for words in between):
        return None
    ids = {identity for probe in probes for identity in probe.ids}
    channel = all(words.endswith(_CHANNEL_END) for words in between)
    pattern = _CHANNEL if channel else compile_words(between, ids) if between[0].strip() else re.compile(r"\s*\n")
    # before a call that nothing opens stands the begin of the text, or a mark
    body = NameBody(pattern, between[0].strip(), rf"(?:\A\s*|(?<=[>\]|])){_NAME.pattern}{pattern.pattern}\s*\{{")
    frame = find_frame(probes, units, body.head)
    return lambda text, tools: read_sections(text, frame, body, tools)


NAME_FIRST = Syntax(locate_name_first, learn_name_first)
