"""A call syntax: (get_weather :city "Paris" :days 3), each value as JSON."""

import re

from kd.toolcalls.json_scan import read_value, skip_space
from kd.toolcalls.json_values import same_json
from kd.toolcalls.place import Place
from kd.toolcalls.syntax.frame import find_frame, find_units
from kd.toolcalls.syntax.registry import SYNTAXES, Syntax
from kd.toolcalls.syntax.sections import Unit, read_sections
from kd.toolcalls.syntax.strict_json import JsonProblem, explain, read_json

KEY = re.compile(r":(\S+)\s+")


def locate_lisp(text, start, end, name, arguments):
    """Return the place of the first call in text[start:end] that has this name and these arguments, or None."""
    for opens in re.finditer(rf"\(({re.escape(name)})(?=[\s)])", text[start:end]):
        at = first = skip_space(text, start + opens.end())
        given, last = {}, at
        while key := KEY.match(text, at):
            found = read_value(text, key.end())
            if found is None:
                break
            given[key[1]], last = found
            at = skip_space(text, last)
        if text.startswith(")", at) and at < end and same_json(given, arguments):
            return Place((start + opens.start(1), start + opens.end(1)), (first, last), at + 1)
    return None


class LispBody:
    """One call in generated text, as evaluation reads it."""

    noun = "list"
    head = r"\((\w+)(?=[\s)])"

    def read(self, source, at):
        """Read the call that begins at `at`, strictly."""
        text = source.text
        opens = re.compile(self.head).match(text, skip_space(text, at))
        if opens is None:
            return Unit(None, at, "no list", whole=False)
        given, place = {}, skip_space(text, opens.end())
        try:
            while key := KEY.match(text, place):
                given[key[1]], place = read_json(text, key.end())
                place = skip_space(text, place)
        except JsonProblem as problem:
            return Unit(None, at, explain(problem, at), whole=False)
        if not text.startswith(")", place):
            return Unit(None, at, "the list is not closed", whole=False)
        return Unit({"name": opens[1], "arguments": given}, place + 1)

    def mend(self, source, start, end):
        """Mend nothing: what is damaged stays so."""
        return


def learn_lisp(probes):
    """Return the reader of calls as the probes' template frames them."""

    def find(probe, at, call):
        place = locate_lisp(probe.text, at, len(probe.text), call["name"], call["arguments"])
        return place and (place.name[0] - 1, place.end)

    units = find_units(probes, find)
    if units is None:
        return None
    body = LispBody()
    frame = find_frame(probes, units, body.head)
    return lambda text, tools: read_sections(text, frame, body, tools)


SYNTAXES.register("lisp", Syntax(locate_lisp, learn_lisp))
