"""Tagged calls read from a generated text, in the tags that probes show (kd/toolcalls/syntax/tags.py)."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kd.toolcalls.json_scan import skip_space
from kd.toolcalls.json_values import MAX_DEPTH
from kd.toolcalls.syntax.frame import Probe, compile_words, find_frame, find_units
from kd.toolcalls.syntax.registry import Parse, Syntax
from kd.toolcalls.syntax.sections import Source, Unit, read_sections
from kd.toolcalls.syntax.strict_json import find_excess
from kd.toolcalls.syntax.tags import ITEM, XML, XTML, Brackets, Part
from kd.toolcalls.syntax.typed import NO_VALUE, list_types, read_literal, read_typed

_NAME = re.compile(r"[^\s<>{}()\"'=]{1,200}")
_CDATA = ("<![CDATA[", "]]>")


@dataclass(frozen=True)
class Parameter:
    """Form of a parameter.

    Attributes:
        opens: words before its key.
        typed: pattern of the words between key and value -> the value is a text (True), is none (False), or its schema
            says (None).
        closes: words after its value, "\\0" in place of the key.
        pads: space that the template puts before and after a value.
        escaped, quoted, cdata: how a text is written; as it is where none of them holds.
        nested: objects and lists are tags inside.
    """

    opens: str
    typed: tuple[tuple[re.Pattern[str], bool | None], ...]
    closes: str
    pads: tuple[str, str]
    escaped: bool = False
    quoted: bool = False
    cdata: bool = False
    nested: bool = False


@dataclass(frozen=True)
class TagBody:
    """Call as a name, the rest of its tag, and parameters.

    Attributes:
        rest: pattern of what stands between the name and the first parameter.
        parameter: form of the parameters.
        lenient: a value may end with the text.
    """

    rest: re.Pattern[str]
    parameter: Parameter
    lenient: bool = False
    head: str = _NAME.pattern
    noun: str = "call"

    def read(self, source: Source, at: int) -> Unit:
        """Read one call."""
        begin = skip_space(source.text, at)
        name = _NAME.match(source.text, begin)
        rest = self.rest.match(source.text, name.end()) if name else None
        if name is None or rest is None:
            return Unit(None, at, "no name in its tag", whole=False)
        schema = {"properties": source.parameters.get(name[0], {})}
        if not source.spend(0):
            return Unit(None, at, "not read: the text before it is too damaged", whole=False)
        arguments, end, problem = self._read_parameters(source, rest.end(), schema, 0)
        if problem:
            source.spend(end - at)  # a next call may begin within what was read
            return Unit(None, at, f"{problem} (character {end - at})", whole=False)
        call = {"name": name[0], "arguments": arguments}
        excess = find_excess(call)
        return Unit(None, end, excess) if excess else Unit(call, end)

    def mend(self, source: Source, start: int, end: int) -> dict | None:
        """Read a call whose last value is not closed."""
        body = TagBody(self.rest, self.parameter, lenient=True)
        return body.read(Source(source.text[start:end], source.tools), 0).call if source.spend(end - start) else None

    def _read_parameters(self, source: Source, at: int, schema: Any, depth: int) -> tuple[Any, int, str]:
        """Read the parameters that begin at `at`: (an object, or a list of items; end; problem)."""
        form, text = self.parameter, source.text
        pairs: list[tuple[str, object]] = []
        shuts = form.closes.partition("\0")[0]
        while True:
            opens = skip_space(text, at)
            if not text.startswith(form.opens, opens) or text.startswith(shuts, opens):
                break
            key = _NAME.match(text, skip_space(text, opens + len(form.opens)))
            middle = self._match_middle(text, key.end()) if key else None
            if key is None or middle is None:
                return {}, opens, "a parameter's tag is not right"
            begin, name = middle[0].end(), html.unescape(key[0]) if form.escaped else key[0]
            inner = schema.get("items") if name == ITEM else _properties_of(schema).get(name)
            value, at = self._read_value(source, begin, name, inner, middle[1], depth)
            if value is NO_VALUE:
                return {}, begin, f"{name}: the value is not closed, or not of its type"
            if any(name == other for other, _ in pairs) and not (depth and name == ITEM):
                return {}, opens, f"{name!r} stands twice"
            pairs.append((name, value))
        if depth and pairs and all(name == ITEM for name, _ in pairs) and _is_list(schema, len(pairs)):
            return [value for _, value in pairs], at, ""
        return dict(pairs), at, ""

    def _match_middle(self, text: str, at: int) -> tuple[re.Match[str], bool | None] | None:
        """Match the words between a key and its value: (match, whether the value is a text)."""
        matches = ((words.match(text, at), is_text) for words, is_text in self.parameter.typed)
        return next(((match, is_text) for match, is_text in matches if match), None)

    def _read_value(
        self, source: Source, at: int, key: str, schema: Any, is_text: bool | None, depth: int
    ) -> tuple[object, int]:
        """Read the value at `at`: (value, end of its closing tag), or (NO_VALUE, at)."""
        form, text = self.parameter, source.text
        closes = form.closes.replace("\0", html.escape(key) if form.escaped else key)
        inside = skip_space(text, at)
        shut = text.startswith(closes, inside)
        if form.nested and shut and not ({"string"} & (types := list_types(schema))):
            return ([] if "array" in types else {}), inside + len(closes)
        if form.nested and not shut and text.startswith(form.opens, inside) and depth < MAX_DEPTH:
            value, end, problem = self._read_parameters(source, inside, schema or {}, depth + 1)
            end = skip_space(text, end)
            return (value, end + len(closes)) if not problem and text.startswith(closes, end) else (NO_VALUE, at)
        end = source.find(closes, at)
        if end < 0 and not self.lenient:
            return NO_VALUE, at
        written, after = (text[at:end], end + len(closes)) if end >= 0 else (text[at:], len(text))
        written = written.removeprefix(form.pads[0]).removesuffix(form.pads[1])
        if form.cdata and written.strip().startswith(_CDATA[0]) and written.strip().endswith(_CDATA[1]):
            return written.strip()[len(_CDATA[0]) : -len(_CDATA[1])], after
        if form.escaped:
            written = html.unescape(written)
        if is_text is not None:
            return (written if is_text else read_literal(written.strip())), after
        return read_typed(written, schema, plain=not form.quoted), after


def _properties_of(schema: Any) -> Mapping:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def _is_list(schema: Any, count: int) -> bool:
    return count > 1 or not isinstance(schema, Mapping) or ITEM not in _properties_of(schema)


def learn_tags(brackets: Brackets, probes: Sequence[Probe]) -> Parse | None:
    """Learn the tags of a call and of its parameters, and the frame, from probes."""
    rests: list[str] = []
    parts: list[tuple[str, Part, object]] = []

    def find(probe: Probe, at: int, call: dict) -> tuple[int, int] | None:
        found = brackets.find_call(probe.text, at, len(probe.text), call["name"], call["arguments"])
        if found is None:
            return None
        place, its_parts = found
        rests.append(probe.text[place.name[1] : place.arguments[0]])
        parts.extend((probe.text, part, call["arguments"][part.key]) for part in its_parts)
        return place.name[0], place.end

    units = find_units(probes, find)
    parameter = _learn_parameter(parts)
    if units is None or parameter is None:
        return None
    ids = {identity for probe in probes for identity in probe.ids}
    body = TagBody(compile_words(rests, ids), parameter)
    frame = find_frame(probes, units, body.head)
    return None if frame.mark is None else lambda text, tools: read_sections(text, frame, body, tools)


def _learn_parameter(parts: list[tuple[str, Part, object]]) -> Parameter | None:
    opens = {text[part.at[0] : part.key_at[0]] for text, part, _ in parts}
    middles = [(text[part.key_at[1] : part.value_at[0]], isinstance(value, str)) for text, part, value in parts]
    closes = {
        re.sub(rf"(?<=[/>|]){re.escape(part.key)}(?=[<>])", "\0", text[part.value_at[1] : part.at[1]])
        for text, part, _ in parts
    }
    if len(opens) != 1 or len({words.strip() for words in closes}) != 1:
        return None
    words: dict[str, set[bool]] = {}
    for middle, is_text in middles:
        words.setdefault(middle.strip(), set()).add(is_text)
    typed = len(words) > 1 and all(len(kinds) == 1 for kinds in words.values())
    middle, close = middles[0][0], min(closes, key=len)
    spelled = [(text[slice(*part.value_at)], value) for text, part, value in parts]
    return Parameter(
        opens=opens.pop(),
        typed=tuple(
            (_compile_tight(text), next(iter(kinds)) if typed else None)
            for text, kinds in sorted(words.items(), key=lambda item: -len(item[0]))
        ),
        closes=close.strip(),
        pads=(middle[len(middle.rstrip()) :], close[: len(close) - len(close.lstrip())]),
        escaped=any(isinstance(v, str) and written != v and html.unescape(written) == v for written, v in spelled),
        quoted=all(written == json.dumps(v, ensure_ascii=False) for written, v in spelled if isinstance(v, str)),
        cdata=any(isinstance(v, str) and written.startswith(_CDATA[0]) for written, v in spelled),
        nested=any(isinstance(v, (dict, list)) and XML.opening.match(written) for written, v in spelled),
    )


def _compile_tight(words: str) -> re.Pattern[str]:
    """Compile words that a value follows at once, so that space after them is the value's."""
    return re.compile(r"\s*" + r"\s*".join(map(re.escape, words.split())))


TAGS = Syntax(XML.locate, lambda probes: learn_tags(XML, probes))
TOKENS = Syntax(XTML.locate, lambda probes: learn_tags(XTML, probes))
