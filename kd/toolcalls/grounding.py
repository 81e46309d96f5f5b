"""Values carried from a tool's result into an answer.

Two places need the same reading of "carried": the INTEGRATION span (values that the student is trained to copy) and the
integration metric (values that it did copy). Both read `CarriedIndex`, so they cannot drift apart.

Values of a result
  A result that parses as JSON gives its leaves: strings and numbers at any depth, list items included. Keys, booleans
  and null are not values. A string that is itself JSON is opened. Any other text (a plain result, or a leaf of several
  words) gives itself, its lines, what follows "key:" on a line and that part's comma-separated items, quoted pieces,
  and words that look like identifiers (a digit, or one of _ @ / inside).

  A date written 2024-05-12, alone or before a time, also gives the other ways to write it (kd/toolcalls/dates.py); so
  does a time.

Minimum, so that chance does not count
  A string needs 3 to 500 characters, one of them a letter or digit, and a word that is no stop word ("true", "none",
  "the", ...). A number needs 2 digits as the answer writes it, not counting trailing zeros of a fraction: 21 and 0.5
  count, 7 and 7.00 do not. The list and the limits are the constants below.

Equality
  Strings: equal character by character, case included. Numbers: equal in value after thousands commas are dropped, so
  1234.5 is carried by "1,234.5" and by "1234.50"; rounding, percent and unit conversions are not recognised.
  Only whole words and whole numbers match: 12 is in "12%" and "a 12-hour trip", not in "312", "12.5", "-12", "A-12",
  "12:30" or "12kg".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple

from kd.toolcalls.dates import list_spellings

MIN_STRING_CHARS = 3
MIN_NUMBER_DIGITS = 2
MAX_STRING_CHARS = 500  # a longer string is a passage, not a value; the cap also keeps the search linear
_STOP_WORDS = """
    true false null none nan yes no not n/a ok okay done error success the and for but nor yet are was were has
    have had can could will would shall should may might must did does you your she her his him its our their
    they them this that these those there here then than when where what which who whom why how with from into
    onto over under about after before between all any both each few more most other some such only own same too
    very just out off per one two
"""
_SMALL_WORDS = "a am an as at be by do he i if in is it me my of on or so to up us we"
STOP_WORDS = frozenset(_STOP_WORDS.split())
SMALL_WORDS = STOP_WORDS | frozenset(_SMALL_WORDS.split())

_UNITS = re.compile(r"\w+|\s+|[^\w\s]")  # a match made of whole units can never begin or end inside a word
_NUMBER = re.compile(r"-?\d+(?:,\d{3})+(?:\.\d+)?(?!\d)|-?\d+(?:\.\d+)?")
_QUOTED = re.compile(r"\"([^\"\n]+)\"|(?<!\w)'([^'\n]+)'(?!\w)|`([^`\n]+)`|“([^”\n]+)”")
_EDGES = " \t\r\n.,;:!?\"'`()[]{}<>“”"
_END = ""  # marks the end of a value in the trie; no unit is empty


class Carried(NamedTuple):
    """Value in an answer: `answer[start:end] == text`, offsets in characters."""

    start: int
    end: int
    text: str


class CarriedIndex:
    """Values of a conversation's results so far.

    Cost: linear in the results, and in the answer's length times the longest value in it.
    """

    def __init__(self) -> None:
        self._unread: list[str] = []  # results are read when an answer first asks
        self._trie: dict = {}
        self._numbers: set[Decimal] = set()

    def add(self, result: str) -> None:
        """Add the text of one tool message."""
        self._unread.append(result)

    def find(self, answer: str) -> list[Carried]:
        """Find the spans of `answer` that carry a value from the results, left to right.

        Spans never overlap; where several values begin at one place the longest wins.
        """
        for result in self._unread:
            for value in _values(result):
                self._enter(value)
        self._unread.clear()
        if not self._trie and not self._numbers:
            return []
        units = [(match.start(), match.end()) for match in _UNITS.finditer(answer)]
        found: list[Carried] = []
        done = 0
        for index, (start, _) in enumerate(units):
            if start < done:
                continue
            end = max(_longest_string(answer, units, index, self._trie), _number_end(answer, start, self._numbers))
            if end > start:
                found.append(Carried(start, end, answer[start:end]))
                done = end
        return found

    def _enter(self, value: str | Decimal) -> None:
        if isinstance(value, Decimal):
            self._numbers.add(value)
        elif len(value) <= MAX_STRING_CHARS and _counts_as_string(value):
            node = self._trie
            for unit in _UNITS.findall(value):
                node = node.setdefault(unit, {})
            node[_END] = {}


def find_carried(answer: str, results: list[str]) -> list[Carried]:
    """Find the spans of `answer` that carry a value from `results`, texts of tool messages; as `CarriedIndex.find`."""
    index = CarriedIndex()
    for result in results:
        index.add(result)
    return index.find(answer)


def occurs(value: str, text: str) -> bool:
    """Check that `value` stands in `text` as whole words or a whole number: "12" is not in "312" or "12.5"."""
    start = text.find(value) if value else -1
    while start >= 0:
        if _is_whole(text, start, start + len(value)):
            return True
        start = text.find(value, start + 1)
    return False


def _values(result: str) -> Iterator[str | Decimal]:
    """Yield every value of one result, strings as they are and numbers as Decimal (exact, so 0.1 stays 0.1)."""
    stack: list = [result]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, Decimal):
            yield value
        elif isinstance(value, str):
            opened = _open_json(value)
            if opened is not None:
                stack.append(opened)
            else:
                yield from _pieces(value)


def _open_json(text: str):
    """Read the object, list, number or quoted string that `text` spells; None where it is plain text."""
    if not text.lstrip().startswith(tuple('{["-0123456789')):
        return None
    try:
        value = json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=lambda name: None)
    except (ValueError, ArithmeticError, RecursionError):  # not JSON, or nested past any honest result: read it as text
        return None
    return None if value == text else value


def _pieces(text: str) -> Iterator[str | Decimal]:
    text = text.strip()
    yield text
    yield from list_spellings(text)
    for match in _NUMBER.finditer(text):
        if _is_whole(text, match.start(), match.end()):
            yield _decimal(match.group())
    words = text.split()
    if len(words) < 2:
        return
    for word in words:
        word = word.strip(_EDGES)
        if any(char.isdigit() or char in "_@/" for char in word):
            yield word
    for match in _QUOTED.finditer(text):
        yield next(group for group in match.groups() if group).strip()
    for line in text.splitlines():
        yield line.strip()
        _, colon, after = line.partition(": ")
        if colon:
            yield after.strip(_EDGES)
            yield from (item.strip(_EDGES) for item in after.split(","))


def _counts_as_string(value: str) -> bool:
    if len(value) < MIN_STRING_CHARS or value.casefold() in STOP_WORDS:
        return False
    if all(word.strip(_EDGES) in SMALL_WORDS for word in value.casefold().split()):
        return False
    # A bare number is judged by value and by the digit minimum; "0042" or "1.2.3" is a string that happens to have
    # digits.
    if _NUMBER.fullmatch(value) and not value.lstrip("-").startswith("0"):
        return False
    return any(char.isalnum() for char in value) and not _is_short_number(value)


def _is_short_number(text: str) -> bool:
    if not _NUMBER.fullmatch(text):
        return False
    whole, _, fraction = text.partition(".")
    return sum(char.isdigit() for char in whole + fraction.rstrip("0")) < MIN_NUMBER_DIGITS


def _longest_string(answer: str, units: list[tuple[int, int]], index: int, trie: dict) -> int:
    start, best, node = units[index][0], 0, trie
    while index < len(units):
        unit_start, unit_end = units[index]
        node = node.get(answer[unit_start:unit_end])
        if node is None:
            break
        if _END in node and _is_whole(answer, start, unit_end):
            best = unit_end
        index += 1
    return best


def _number_end(answer: str, start: int, numbers: set[Decimal]) -> int:
    match = _NUMBER.match(answer, start)
    if match is None or _is_short_number(match.group()) or not _is_whole(answer, *match.span()):
        return 0
    return match.end() if _decimal(match.group()) in numbers else 0


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))


def _is_whole(text: str, start: int, end: int) -> bool:
    """Check that text[start:end] begins and ends with a word or number, rather than inside one."""
    before, after = text[max(start - 2, 0) : start], text[end : end + 2]
    if _wordlike(text[start]) and before and _wordlike(before[-1]):
        return False
    if _wordlike(text[end - 1]) and after and _wordlike(after[0]):
        return False
    if text[start].isdigit() and before:
        outer = before[-2:-1]
        if before[-1] == "-":  # a sign the value lacks, or the tail of an identifier or a date
            return False
        if before[-1] in ".,:/" and outer.isdigit():
            return False
    elif text[start] == "-" and before and _wordlike(before[-1]):  # a hyphen, not a sign
        return False
    return not (text[end - 1].isdigit() and after[:1] in tuple(".,:/-") and after[1:].isdigit())


def _wordlike(char: str) -> bool:
    return char.isalnum() or char == "_"
