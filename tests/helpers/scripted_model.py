"""A model that says what a test needs, and records to ask it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kd.evaluation.answerers.local_model import LocalModel
from kd.evaluation.cases import build_cases
from kd.evaluation.evaluate import evaluate_cases, merge
from kd.records.record import Record

TEMPLATE = """{%- for t in tools or [] -%}{{ t.function.name }}{%- endfor -%}
{%- for m in messages -%}<|{{ m.role }}|>{{ m.content or '' }}
{%- for c in m.tool_calls or [] -%}<tool_call>{{ c.function | tojson }}</tool_call>{%- endfor -%}<|end|>
{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges, whose turns end in <|end|>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


class Script(torch.nn.Module):
    """Answers each prompt with its scripted text, one token a step; rows may leave the batch, as with a real cache."""

    def __init__(self, tokenizer, answers):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.vocab, self.eos = len(tokenizer), tokenizer.eos_token_id
        self.answers = {
            tuple(tokenizer(prompt)["input_ids"]): tokenizer(text)["input_ids"] + [self.eos]
            for prompt, text in answers.items()
        }

    def forward(self, input_ids, attention_mask, past_key_values=None, **_):
        if past_key_values is None:
            rows = [self.answers[tuple(row[mask.bool()].tolist())] for row, mask in zip(input_ids, attention_mask)]
            past_key_values = ScriptCache(rows)
        past_key_values.step += 1
        logits = torch.zeros(len(past_key_values.rows), 1, self.vocab)
        for row, ids in enumerate(past_key_values.rows):
            logits[row, 0, ids[min(past_key_values.step, len(ids)) - 1]] = 1
        return SimpleNamespace(logits=logits, past_key_values=past_key_values)


class ScriptCache:
    def __init__(self, rows):
        self.rows, self.step = rows, 0

    def batch_select_indices(self, index):
        self.rows = [self.rows[at] for at in index.tolist()]


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


WEATHER = tool("get_weather", city={"type": "string"}, days={"type": "integer"})
STOCK = tool("get_stock", symbol={"type": "string"}, limit={"type": "number"})


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


def written(*calls):
    return "".join(f"<tool_call>{json.dumps(one)}</tool_call>" for one in calls)


def record(name, *turns, tools=(WEATHER, STOCK)):
    """turns: text for the user, a list of calls, ("tool", result), ("say", answer)."""
    messages = []
    for turn in turns:
        if isinstance(turn, str):
            messages.append({"role": "user", "content": turn})
        elif isinstance(turn, list):
            calls = [{"id": str(at), "type": "function", "function": one} for at, one in enumerate(turn)]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        else:
            messages.append({"role": "tool" if turn[0] == "tool" else "assistant", "content": turn[1]})
    return Record(name, messages, list(tools))


def evaluate(tokenizer, records, answer, **options):
    """`answer`: case -> text, or one text for all."""
    cases = build_cases(records, tokenizer)
    model = Script(tokenizer, {case.prompt: answer(case) if callable(answer) else answer for case in cases})
    options = {"batch_size": 4, "max_new_tokens": 400, **options}
    return merge(evaluate_cases(LocalModel(model, tokenizer, **options), cases))


def gold(case):
    return written(*case.gold_calls) + case.gold_text
