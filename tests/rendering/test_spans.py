"""Span bits over thousands of demo records, read back from the tokens with nothing of the code that set them."""

from __future__ import annotations

import hashlib
import json

import pytest
from transformers import AutoTokenizer

from helpers.jobs import REPOSITORY
from helpers.reading import calls_of, leaves
from kd.batching.micro_batch import collate
from kd.rendering.encode import encode
from kd.rendering.spans import ARGS, INTEGRATION, TOOL, TRUTH
from kd.sources.demo import corpus as demo

RECORDS_OF_A_KIND = 250  # times 6 kinds and 3 splits: 4500 records


def runs(encoded, bit: int, tokenizer) -> list[str]:
    """The text of each unbroken run of tokens with `bit`."""
    texts, run = [], []
    for token, bits in zip([*encoded.input_ids, 0], [*encoded.bits, 0]):
        if bits & bit:
            run.append(token)
        elif run:
            texts.append(tokenizer.decode(run))
            run = []
    return texts


def written(message) -> str:
    """What the demo's template has the assistant write, end-of-turn included."""
    calls = "".join(
        f'<tool_call>{{"name": "{c["function"]["name"]}", "arguments": '
        f"{json.dumps(c['function']['arguments'])}}}</tool_call>"
        for c in message.get("tool_calls", ())
    )
    return f"{message['content']}{calls}<|end|>"


@pytest.mark.parametrize("split", demo.SPLITS)
@pytest.mark.parametrize("kind", demo.KINDS)
def test_the_bits_of_every_demo_record(kind, split, tokenizer):
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    for index in range(RECORDS_OF_A_KIND):
        record = demo.record(kind, index, seed=17, split=split, short=index % 4 == 3)
        encoded = encode(record, tokenizer)
        calls = calls_of(record)
        assert runs(encoded, TOOL, tokenizer) == [call["name"] for call in calls]
        assert [json.loads(text) for text in runs(encoded, ARGS, tokenizer)] == [call["arguments"] for call in calls]

        # every assistant token and nothing else: prompts, results and the answer's own prompt have no bit at all
        turns = [written(m) for m in record.messages if m["role"] == "assistant"]
        assert runs(encoded, 1 | 2 | 4 | 8, tokenizer) == runs(encoded, TRUTH, tokenizer) == turns
        begins = [i for i in range(1, len(encoded.bits)) if encoded.bits[i] & TRUTH and not encoded.bits[i - 1]]
        assert [encoded.input_ids[i - 1] for i in begins] == [assistant] * len(turns)

        values = [leaf for m in record.messages if m["role"] == "tool" for leaf in leaves(json.loads(m["content"]))]
        carried = runs(encoded, INTEGRATION, tokenizer)
        assert all(any(value in text for value in values) for text in carried)
        assert all(any(value in text for text in carried) for value in values)
        assert bool(carried) == bool(calls)


@pytest.mark.parametrize("kind", demo.KINDS)
def test_a_row_is_the_position_before_its_token(kind, tokenizer):
    batch = [encode(demo.record(kind, index, seed=3), tokenizer) for index in range(4)]
    micro = collate(batch, tokenizer.pad_token_id)
    tokens, length = micro.input_ids.flatten(), micro.input_ids.shape[1]
    assert (tokens[micro.rows + 1] == micro.labels).all()
    supervised = [(b * length + t - 1, bits, b) for b, e in enumerate(batch) for t, bits in enumerate(e.bits) if bits]
    assert list(zip(micro.rows.tolist(), micro.bits.tolist(), micro.record.tolist())) == supervised
    # the first row of each record is the assistant's header: the last token of the prompt predicts the first of the
    # answer
    first = [int(tokens[micro.rows[micro.record == b][0]]) for b in range(4)]
    assert tokenizer.convert_ids_to_tokens(first) == ["<|assistant|>"] * 4


@pytest.mark.parametrize(
    ("each", "digest"),
    [
        (12, "d0b99e8b26262ac1216af13c62e9edd774a7aa38bc7dfff0560561f1727fb8c3"),
        pytest.param(112, "79bee6e65d24e5982acbe2307643a9f464624a11bcd7fbe672716aaf158629b9", marks=pytest.mark.slow),
    ],
)
def test_the_demo_corpus_is_encoded_as_the_shipped_teacher_was_trained_on_it(each, digest):
    """Ids, bits and weights of 18 x `each` records under the shipped tokenizer, to the byte: its teacher and its runs
    rest on them.
    """
    shipped = AutoTokenizer.from_pretrained(REPOSITORY / "configs/demo_teacher")
    made = hashlib.sha256()
    for split in demo.SPLITS[:3]:  # those that there were then
        for kind in demo.KINDS[:6]:
            for index in range(each):
                encoded = encode(demo.record(kind, index, seed=17, split=split, short=index % 4 == 3), shipped)
                made.update(json.dumps([encoded.record_id, encoded.input_ids, encoded.bits, encoded.weight]).encode())
    assert made.hexdigest() == digest
