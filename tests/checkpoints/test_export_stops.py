"""The exported student stops where its data's turns stop, with plain `generate` and no arguments of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kd.checkpoints.export_hf import export_student
from kd.config.load import load_config
from kd.models.student import build_run_student
from kd.records.record import parse_record
from kd.rendering.encode import encode, encode_prompt
from kd.rendering.spans import TRUTH
from kd.rendering.stops import find_stops

ROLES = {"user": "<|user|>", "assistant": "<|assistant|>", "tool": "<|observation|>"}
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
    "{% for m in messages %}<|{{ 'observation' if m.role == 'tool' else m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function|tojson }}</tool_call>{% endfor %}END{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
RECORD = parse_record(
    {
        "id": "r",
        "tools": [{"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}],
        "messages": [
            {"role": "user", "content": "Go"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "go", "arguments": {}}}],
            },
            {"role": "tool", "content": "ok"},
            {"role": "assistant", "content": "Done"},
        ],
    },
    "x",
)
KINDS = {  # eos of the tokenizer, end of a turn, eos_token_id of the source's generation_config
    "eos in the template": ("<|im_end|>", "<|im_end|>", "<|im_end|>"),
    "eos not in the template": ("<|endoftext|>", "<|im_end|>", None),
    "several": ("<|endoftext|>", "<|im_end|>", ["<|im_end|>", "<|endoftext|>"]),
    "none": (None, "<|im_end|>", None),
    "next role's marker": ("<|endoftext|>", "", ["<|endoftext|>"]),
}
WANTED = {  # message -> the token that a student must end it with
    "next role's marker": {1: "<|observation|>", 3: "<|user|>"}
}


pytestmark = pytest.mark.usefixtures("one_rank")


def make_tokenizer(eos: str | None, end: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens([*ROLES.values(), "<|im_end|>", "<|endoftext|>"])
    raw.add_tokens(["<tool_call>", "</tool_call>"])  # not special, as in Qwen's and GLM's
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos)
    tokenizer.chat_template = TEMPLATE.replace("END", end)
    return tokenizer


@pytest.fixture(scope="module", params=KINDS)
def source(request, tmp_path_factory) -> tuple[str, Path]:
    """A tiny model with the tokenizer of one kind; its generation_config is one that transformers would not save."""
    eos, end, named = KINDS[request.param]
    folder, tokenizer = tmp_path_factory.mktemp("source"), make_tokenizer(eos, end)
    sizes = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=None, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids(named) if named else None
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids, "temperature": 0.6}))
    return request.param, folder


STUDENTS = {
    "cut": "init: teacher_layers, num_hidden_layers: 1",
    "checkpoint": "init: checkpoint, path: {path}",
    "scratch": "architecture: llama, hidden_size: 48, intermediate_size: 64, num_hidden_layers: 1, "
    "num_attention_heads: 4, num_key_value_heads: 4",
}


@pytest.mark.parametrize("student", STUDENTS)
def test_plain_generate_stops_where_the_turns_of_the_data_stop(student, source, tmp_path):
    kind, path = source
    (tmp_path / "run.yaml").write_text(
        f"run: {{name: t}}\nteacher: {{path: {path}, dtype: fp32}}\n"
        f"student: {{dtype: fp32, {STUDENTS[student].format(path=path)}}}\n"
        "data: {stages: [{name: a, train: [x], max_length: 128}]}\n"
        "training: {steps: 10, deepspeed: ds_configs/zero3_cpu.json}\n"
    )
    config, tokenizer = load_config(tmp_path / "run.yaml"), AutoTokenizer.from_pretrained(path)
    model = build_run_student(config, tokenizer, work_dir=tmp_path)
    overfit(model, encode(RECORD, tokenizer))
    export_student(model, tokenizer, tmp_path / "student")

    model, tokenizer = (auto.from_pretrained(tmp_path / "student") for auto in (AutoModelForCausalLM, AutoTokenizer))
    for index, said in ((1, '<tool_call>{"name": "go", "arguments": {}}</tool_call>'), (3, "Done")):
        prompt = tokenizer(encode_prompt(RECORD, index, tokenizer)[0], return_tensors="pt")
        answer = model.generate(**prompt, max_new_tokens=80)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(answer) == said + WANTED.get(kind, {}).get(index, "<|im_end|>")

    named = KINDS[kind][2] or []
    wanted = {*find_stops(tokenizer).tokens, *([named] if isinstance(named, str) else named)}
    for name in ("config.json", "generation_config.json"):
        ids = json.loads((tmp_path / "student" / name).read_text())["eos_token_id"]
        assert wanted <= set(tokenizer.convert_ids_to_tokens([ids] if isinstance(ids, int) else ids)), name


def overfit(model, encoded) -> None:
    """Train on one record's assistant turns."""
    ids = torch.tensor([encoded.input_ids])
    labels = torch.tensor([[t if bits & TRUTH else -100 for t, bits in zip(encoded.input_ids, encoded.bits)]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            return
    raise AssertionError(f"not learnt: loss {loss.item()}")
