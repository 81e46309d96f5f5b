"""Frame of calls: the words that a template puts before, between and after the calls of a turn.

They are what stands around the calls in renderings of known calls (`Probe`). Space in them is free, ids are any id, and
digits that differ from one rendering to another are any digits.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

_LETTER = re.compile(r"[^\W\d_]")
_FIRST_TAG = re.compile(r"(?:\]<\][^\s<>\[\]]*\[>\[)?<[^<>\s]*>?|\[[^\s\[\]]+\]")
_LAST_TAG = re.compile(r"(?:\]<\][^\s<>\[\]]*\[>\[)?<[^<>\s]*>\Z|\[[^\s\[\]]+\]\Z")
_ID = "[\\w.:-]+"


class Probe(NamedTuple):
    """Assistant's turn of known calls, as a template renders it.

    Attributes:
        text: what the model writes, the end of its turn included.
        content: said before the calls; the answer where there are none.
        calls: {"name", "arguments"} of each.
        ids: ids that the calls were given.
    """

    text: str
    content: str
    calls: list[dict]
    ids: list[str]


Units = list[tuple[int, int]]  # [start, end) characters of each call of a probe, without its frame


def find_units(
    probes: Sequence[Probe], find: Callable[[Probe, int, dict], tuple[int, int] | None]
) -> list[Units] | None:
    """Find every call of every probe by `find` (probe, offset to begin at, call); None where one is not found."""
    units: list[Units] = []
    for probe in probes:
        places: Units = []
        for call in probe.calls:
            place = find(probe, places[-1][1] if places else 0, call)
            if place is None:
                return None
            places.append(place)
        units.append(places)
    return units


class Frame(NamedTuple):
    """Words around calls, as patterns.

    Attributes:
        trigger: where a block of calls begins, right or damaged.
        opens: all that stands before the first call.
        between: what stands between two calls of one block; None where each call has a block of its own.
        closes: what stands after the last call; None where nothing does.
        mark: the next end or begin of a block after damage; None where only the text's end is one.
        open_words, close_words: as messages name them.
        ends_turn: what closes also ends the turn, and so may be cut off at the text's end.
    """

    trigger: re.Pattern[str]
    opens: re.Pattern[str]
    between: re.Pattern[str] | None
    closes: re.Pattern[str] | None
    mark: re.Pattern[str] | None
    open_words: str
    close_words: str
    ends_turn: bool


def find_frame(probes: Sequence[Probe], units: Sequence[Units], head: str) -> Frame:
    """Find the frame in probes, of which `units` holds the places of the calls.

    head: pattern of what a call begins with, for templates that write nothing before it.
    """
    answer = next((probe for probe in probes if not probe.calls), Probe("", "", [], []))
    begin, _, end_of_turn = answer.text.partition(answer.content) if answer.content else ("", "", "")
    opens, between, closes, ends_turn = _find_words(probes, units, begin, end_of_turn.strip())
    ids = {word for probe in probes for word in (*probe.ids, *(call["name"] for call in probe.calls))}
    own_blocks = bool(between) and all(
        "".join(words.split()) == "".join((close + open_).split())
        for words in between
        for close in closes[:1]
        for open_ in opens[:1]
    )
    strong = all(_LETTER.search(words) for words in opens)
    inside = [probe.text[slice(*place)] for probe, places in zip(probes, units) for place in places]
    triggers = _unique(_find_trigger(words.strip(), [answer.text, *inside]) for words in opens) if strong else [""]
    closing = _last_tag(closes[0].strip())
    # no space before it: a search would look at each run of space again from each of its characters
    words = compile_words(opens, ids).pattern.removeprefix(r"\s*")
    shown = "|".join(map(re.escape, triggers)) if all(triggers) else words
    start = re.compile(shown if strong else rf"{words}(?={head})")
    marks = [re.escape(closing)] if closing else []
    return Frame(
        trigger=start,
        opens=compile_words(opens, ids),
        between=compile_words(between, ids) if between and not own_blocks else None,
        closes=compile_words(closes, ids) if any(words.strip() for words in closes) else None,
        mark=re.compile("|".join([*marks, start.pattern])) if strong else None,
        open_words=opens[0].strip(),
        close_words=closing or closes[0].strip(),
        ends_turn=ends_turn,
    )


def _find_words(
    probes: Sequence[Probe], units: Sequence[Units], begin: str, end_of_turn: str
) -> tuple[list[str], list[str], list[str], bool]:
    """List the words before, between and after the calls, and say whether the last of them end the turn."""
    alone, beside, between, closes = [], [], [], []
    ends_turn = False
    for probe, places in zip(probes, units):
        if not probe.calls:
            continue
        before, after = probe.text[: places[0][0]], probe.text[places[-1][1] :].rstrip()
        said = before.rfind(probe.content) if probe.content else -1
        (beside if said >= 0 else alone).append(before[said + len(probe.content) :] if said >= 0 else before)
        between += [probe.text[one[1] : two[0]] for one, two in zip(places, places[1:])]
        if said < 0 and probe.content and probe.content in after:  # said behind the calls
            after = after[: after.find(probe.content)]
        elif end_of_turn and after.endswith(end_of_turn):
            after = after[: -len(end_of_turn)]
        else:
            ends_turn = bool(end_of_turn)
        closes.append(after)
    if beside:
        alone = [shared for words in alone if (shared := _shared_end([words, *beside])).strip()] or alone
        beside = beside if not alone else []
    else:
        shared = len(os.path.commonprefix([begin, *alone])) if begin.strip() else 0
        alone = [words[shared:] for words in alone]
    return _unique([*alone, *beside]) or [""], _unique(between), _unique(closes) or [""], ends_turn


def _shared_end(texts: Sequence[str]) -> str:
    return os.path.commonprefix([text[::-1] for text in texts])[::-1]


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _find_trigger(opens: str, others: Sequence[str]) -> str:
    """Find the shortest run of tags at the front of `opens` that none of `others` has; "" where there is none."""
    end = 0
    while tag := _FIRST_TAG.match(opens, end):
        end = tag.end()
        if not any(opens[:end] in other for other in others):
            return opens[:end]
        words = re.compile(r"[^\s<\[]*").match(opens, end)
        end = words.end() if words else end
    return ""


def _last_tag(closes: str) -> str:
    tag = _LAST_TAG.search(closes)
    return tag[0] if tag else closes if _LETTER.search(closes) else ""


def compile_words(literals: Sequence[str], ids: Iterable[str] = ()) -> re.Pattern[str]:
    """Compile a template's words, in any of their forms, to a pattern that takes any space and any id."""
    by_shape: dict[str, set[str]] = {}
    for literal in literals:
        for identity in ids:
            literal = literal.replace(identity, "\0") if identity else literal
        by_shape.setdefault(re.sub(r"\d+", "0", literal), set()).add(literal.strip())
    patterns = []
    for shape in sorted(by_shape, key=len, reverse=True):
        forms = by_shape[shape]
        patterns += [_pattern(form, any_digits=len(forms) > 1) for form in (sorted(forms)[:1] if forms else ())]
    return re.compile(rf"\s*(?:{'|'.join(_unique(patterns))})")


def _pattern(literal: str, *, any_digits: bool) -> str:
    out = []
    for part in re.split(r"(\s+|\0|\d+)", literal):
        if part.isspace():
            wordy = out and out[-1][-1:].isalnum()
            out.append(r"\s+" if wordy else r"\s*")
        elif part == "\0":
            out.append(_ID)
        else:
            out.append(r"\d+" if any_digits and part.isdigit() else re.escape(part))
    return "".join(out)
