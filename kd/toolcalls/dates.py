"""Dates and times as an answer may write them, where a tool gave 2024-05-12 or 2024-05-12T14:30:00Z.

Only spellings that can be read in one way count: the month by name, with or without the year, or numbers whose order is
plain (the year first; or a day above 12, or equal to the month). 05/12/2024 is May or December, so it is no spelling of
either. A time is its hours and minutes, on the clock of 24 hours or of 12.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

_ISO = re.compile(
    r"(?<![\d-])(\d{4})-(\d\d)-(\d\d)(?:[T "
    r"]([01]\d|2[0-3]):([0-5]\d)(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?(?![\d-])"
)
_NAMES = "January February March April May June July August September October November December"
_MONTHS = _NAMES.split()


def list_spellings(text: str) -> Iterator[str]:
    """Yield the other ways to write each date and time in `text`."""
    for match in _ISO.finditer(text):
        try:
            day = date(*map(int, match.groups()[:3]))
        except ValueError:
            continue
        yield match[0][:10]
        yield from _spellings(day)
        if match[4]:
            yield f"{match[4]}:{match[5]}"
            yield from (
                f"{int(match[4]) % 12 or 12}:{match[5]}{half}"
                for half in ((" PM", " pm", "pm", "PM") if int(match[4]) > 11 else (" AM", " am", "am", "AM"))
            )


def _spellings(day: date) -> Iterator[str]:
    suffix = "th" if 10 < day.day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    for month in dict.fromkeys((_MONTHS[day.month - 1], _MONTHS[day.month - 1][:3])):
        for number in dict.fromkeys((str(day.day), f"{day.day:02}", f"{day.day}{suffix}")):
            for said in (f"{month} {number}", f"{number} {month}"):
                yield from (said, f"{said} {day.year}", f"{said}, {day.year}")
    yield f"{day.year}/{day.month:02}/{day.day:02}"
    if day.day > 12 or day.day == day.month:
        for sign in "/.-":
            yield f"{day.day:02}{sign}{day.month:02}{sign}{day.year}"
            yield f"{day.month:02}{sign}{day.day:02}{sign}{day.year}"
