"""A call syntax: (get_weather :city "Paris" :days 3), each value as JSON."""

import re

from kd.toolcalls.json_scan import read_value, skip_space
from kd.toolcalls.json_values import same_json
from kd.toolcalls.place import Place
from kd.toolcalls.syntax.registry import SYNTAXES, Syntax

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


SYNTAXES.register("lisp", Syntax(locate_lisp))
