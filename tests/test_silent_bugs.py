"""Three of the silent bugs found in this field, each with a test of its own.

tests/bugs/bug_table.py names the tests of all 18, and `pytest -m bugs` puts each of them in.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from kd.records.record import Record
from kd.rendering.encode import encode
from kd.rendering.spans import TOOL, TRUTH, find_spans
from kd.rendering.turns import render
from kd.sources.demo import corpus as demo

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("role", ["system", "user", "tool"])
def test_7_a_call_quoted_in_the_prompt_is_not_the_call(role, tokenizer):
    """Hermes-style system prompts show an example call; a user may paste one, a tool may return one."""
    record = demo.record("single", 4)
    at = next(i for i, m in enumerate(record.messages) if m.get("tool_calls"))
    text, turns = render(record, tokenizer)
    quote = text[turns[0][1] : turns[0][2]].removesuffix("<|end|>")
    quoted = Record("q", [{"role": role, "content": f"example: {quote}"}, *record.messages], record.tools)
    text, turns = render(quoted, tokenizer)
    spans = find_spans(quoted, text, turns)
    assert at + 1 == turns[0][0] and all(span.start >= turns[0][1] for span in spans)
    bits = encode(quoted, tokenizer).bits
    assert sum(bool(b & TOOL) for b in bits) == sum(bool(b & TOOL) for b in encode(record, tokenizer).bits)
    assert not any(bits[: next(i for i, b in enumerate(bits) if b & TRUTH)])


def test_13_the_ids_are_those_of_the_whole_text_tokenized_once(tokenizer):
    for record in demo.records("train", 40, seed=8):
        text, _ = render(record, tokenizer)
        assert encode(record, tokenizer).input_ids == tokenizer.encode(text, add_special_tokens=False)


def _is_missing_module(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.type, ast.Name) and handler.type.id in ("ImportError", "ModuleNotFoundError")


def imports_of(path: Path) -> set[tuple[str, str | None]]:
    """(module, name) of every import but those whose failure is handled on the spot: optional packages."""
    found, tree = set(), ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any(map(_is_missing_module, node.handlers))
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module, alias.name) for alias in node.names}
    return found


def test_15_every_import_written_in_kd_and_launch_resolves():
    """Also those inside functions, which only an option's choice reaches."""
    wanted = set().union(
        *(imports_of(path) for package in ("kd", "launch") for path in (REPOSITORY / package).rglob("*.py"))
    )
    for module, name in sorted(wanted, key=str):
        loaded = importlib.import_module(module)
        if name is not None and not hasattr(loaded, name):
            importlib.import_module(f"{module}.{name}")
