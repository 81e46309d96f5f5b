"""data.rewrite_calls: never: Hermes' calls, results and offers stay as they are written."""

from __future__ import annotations

import json

import pytest

from helpers.template_forms import make_tokenizer
from kd.config.schema import Data
from kd.records.checks import DataError
from kd.records.files import DataFiles, read_records
from kd.rendering.encode import annotate_sequences
from kd.sources.file_index import RecordIndex

TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "Lorvik"}}\n</tool_call>'
SAID = [
    ("system", f"Be brief. <tools>{json.dumps([TOOL])}</tools>"),
    ("human", "How warm is it in Lorvik?"),
    ("gpt", CALL),
    ("tool", '<tool_response>\n{"level": 21.5}\n</tool_response>'),
    ("gpt", "It is 21.5 there."),
]
RECORD = {"id": "a", "conversations": [{"from": role, "value": text} for role, text in SAID]}
CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture
def plain():
    """A tokenizer whose template writes neither tools nor calls, and that has no token of its own for <tool_call>."""
    return make_tokenizer(CHAT, ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"])


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(RECORD) + "\n")
    return path


def test_text_stays_and_the_offered_tools_are_declared(lines):
    (record,) = read_records(lines, rewrite_calls="never")
    assert [message["content"] for message in record.messages] == [text for _, text in SAID]
    assert not any(message.get("tool_calls") for message in record.messages) and record.tools == [TOOL]
    (structured,) = read_records(lines)
    assert structured.messages[2]["tool_calls"] and "<tools>" not in structured.messages[0]["content"]


def test_a_template_without_calls_trains_them_where_they_stand(lines, plain):
    (record,) = read_records(lines, rewrite_calls="never")
    (found,) = annotate_sequences(record, plain)
    shown = {
        span.kind: found.text[found.offsets[span.start][0] : found.offsets[span.end - 1][1]] for span in found.spans
    }
    assert "look" in shown["tool"] and '"city": "Lorvik"' in shown["args"] and "21.5" in shown["integration"]
    assert [(call.name, call.arguments) for call in found.calls] == [("look", {"city": "Lorvik"})]
    (structured,) = read_records(lines)
    with pytest.raises(DataError, match="data.rewrite_calls: never trains them as they are written"):
        annotate_sequences(structured, plain)


@pytest.mark.parametrize("array", [False, True])
def test_an_index_reads_them_again_as_text_from_any_file(lines, tmp_path, array):
    if array:  # its records are no lines, and are read again from a copy
        lines = tmp_path / "b.json"
        lines.write_text(json.dumps([RECORD]))
    found = {mode: RecordIndex([DataFiles(str(lines), 1.0, None, mode)]) for mode in (False, True, "never")}
    assert found["never"][0].messages[2]["content"] == CALL
    assert found[False][0].messages[2]["tool_calls"] == found[True][0].messages[2]["tool_calls"]
    assert found["never"].fingerprint() != found[False].fingerprint()


def test_the_key_takes_three_values():
    stages = ({"name": "a", "max_length": 9, "train": ("a.jsonl",)},)
    assert [Data(stages=stages, rewrite_calls=value).rewrite_calls for value in (False, True, "never")]
    with pytest.raises(ValueError, match="never"):
        Data(stages=stages, rewrite_calls="no")
