"""Spans of every family's calls read back from their tokens: what is located has one verdict."""

from __future__ import annotations

from typing import Any

import pytest

from helpers import golden
from helpers.family_templates import FAMILIES, make_template
from helpers.template_cases import with_template
from kd.preflight.call_syntax import check_call_syntax
from kd.preflight.read_back import SpanReader
from kd.records.checks import DataError
from kd.records.record import Record
from kd.rendering.encode import annotate

ARGUMENTS: list[dict[str, Any]] = [
    {"city": "Oslo", "days": 3},
    {"city": 'say "hi", then', "days": 3},  # no text between commas where a template writes it without quotes
    {"city": "two\nlines", "live": True, "note": None},
    {"box": {"a": "x", "b": [1, "y"]}, "list": ["a", "b"]},
]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_located_reads_back(name, tokenizer):
    """What a syntax cannot say is refused with the reason, never located and then found not to read back."""
    other = with_template(tokenizer, make_template(name), "<s>", "</s>")
    for arguments in ARGUMENTS:
        messages = [
            {"role": "user", "content": "Well?"},
            {"role": "assistant", "content": "", "tool_calls": [golden.call("call00001", "stop", arguments)]},
            {"role": "tool", "tool_call_id": "call00001", "name": "stop", "content": "1"},
            {"role": "assistant", "content": "So it is."},
        ]
        record = Record("r", messages, [golden.tool("stop")])
        if name == "llama32_pythonic" and "hi" in arguments.get("city", ""):
            with pytest.raises(DataError, match=r"messages\[1\]: the calls are not read back .*'.stop.city=say .*then"):
                annotate(record, other)
            continue
        counts, problems = SpanReader(other).read_back(record, annotate(record, other))
        assert problems == [] and counts["args"] == (1, 0) == counts["tool"]


def test_the_check_of_a_template(tokenizer):
    assert check_call_syntax(with_template(tokenizer, make_template("gemma4"), "<s>", "</s>")) == {
        "name": "the template's own calls are read back",
        "ok": True,
        "detail": "in the syntax `bare_keys`",
    }
    source = make_template("gemma4").replace("call:", "call~").replace("c.function.name", "c.function.name | upper")
    check = check_call_syntax(with_template(tokenizer, source, "<s>", "</s>"))
    assert check["ok"] is False and "does not read back" in check["detail"]
