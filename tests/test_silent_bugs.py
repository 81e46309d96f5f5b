"""The silent bugs found in this field, and the test that fails when one is put in.

Each was put into a copy of the tree, and the test named here failed. Numbers are those of the project's list; 9, 14 and
16 belong to the cache, which is not built yet.

     1  cross-entropy's gradient dropped, its loss shown
        test_losses.py::test_every_reported_term_is_the_one_that_is_differentiated
     2  T^2 in the loss and not in the gradient             the same;
        distributed/test_gradients.py::test_every_split_...
     3  soft cross-entropy reported as KL                   the same
     4  a mean per micro-batch                              distributed/test_gradients.py::test_every_split_...
     5  span weights accepted and ignored                   test_losses.py::test_row_weights_sum_to_...;
        test_every_split_...
     6  the mask off by one against the logits              data/test_batches.py::test_collate_by_hand;
        data/test_spans.py::test_a_row_is_...
     7  spans placed at prompt positions                    data/test_spans.py::test_the_bits_of_every_demo_record;
        below
     8  a constant that requires grad as a loss
        test_losses.py::test_a_span_loss_is_the_mean_cross_entropy_...
    10  padded vocabulary given probability                 test_losses.py::test_padded_columns_get_no_probability;
        test_every_split_...
    11  a schedule that does not reach student and ranks    distributed/test_gradients.py::test_schedules_reach_...
    12  the partitioned lm_head of shape 0                  distributed/test_gradients.py: all, with every weight
        partitioned
    13  text tokenized again, with other ids
        data/test_templates.py::test_a_tokenizer_whose_tokens_straddle_the_spans; below
    15  a config option that raises ImportError             below
    17  a batch with nothing to train: NaN, 0 off the graph, hang    test_losses.py::test_no_rows_at_all_...;
        test_a_span_with_no_row_...;
                                                            distributed/test_gradients.py::test_a_rank_with_no_supervised_row
    18  the student called around its engine                distributed/test_gradients.py::test_every_split_...
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
