"""Tokens a second of rendering and span extraction (kd.rendering.encode.encode), one worker on one core, at a
150,000-token vocabulary.

    python benchmarks/span_throughput.py          # writes benchmarks/results/span_throughput.json

The tokenizer is a byte-level BPE trained here on made-up words, split as current models' tokenizers split. The records
are made of the same words: a system prompt, eight tools, rounds of a request, calls, results and an answer that carries
values. Seconds are of this process's processor time, so a busy machine does not count; wall seconds stand beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tokenizers  # noqa: E402
import transformers  # noqa: E402
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from benchmarks.measure import check_out, count, write_json  # noqa: E402
from helpers import golden  # noqa: E402
from kd.paths import path_option  # noqa: E402
from kd.records.record import Record, parse_record  # noqa: E402
from kd.rendering.encode import encode  # noqa: E402

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "[INST]", "[/INST]", "[TOOL_CALLS]"]
TEMPLATES = (
    "hermes",
    "qwen3",
    "llama31",
    "mistral_list",
    "mistral_args",
    "deepseek_v3",
    "xml_function",
    "python_calls",
    "demo",
)


class Words:
    """Made-up words, the common ones often: rank r is drawn with weight 1 / r."""

    def __init__(self, num_words: int, rng: random.Random):
        parts = [
            c + v + e
            for c in [
                "b",
                "c",
                "d",
                "f",
                "g",
                "h",
                "k",
                "l",
                "m",
                "n",
                "p",
                "r",
                "s",
                "t",
                "v",
                "z",
                "ch",
                "sh",
                "tr",
                "st",
            ]
            for v in ["a", "e", "i", "o", "u", "ai", "ou"]
            for e in ("", "n", "r", "s", "l")
        ]
        made: dict[str, None] = {}
        while len(made) < num_words:
            made["".join(rng.choices(parts, k=rng.choice((1, 2, 2, 3, 3, 4))))] = None
        self.words, self.rng = list(made), rng
        self._weights = [0.0]
        for rank in range(1, num_words + 1):
            self._weights.append(self._weights[-1] + 1 / rank)
        self._weights = self._weights[1:]

    def text(self, count: int) -> str:
        return " ".join(self.rng.choices(self.words, cum_weights=self._weights, k=count))


def build_tokenizer(words: Words, vocab_size: int):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    templates = [golden.template(name) for name in TEMPLATES]
    texts = [
        *templates,
        *(" ".join(words.words[at : at + 500]) for _ in range(3) for at in range(0, len(words.words), 500)),
        *(words.text(2000) for _ in range(100)),
    ]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def make_record(words: Words, number: int, rounds: int) -> Record:
    rng = words.rng
    names = [f"{a}_{b}" for a, b in zip(rng.choices(words.words, k=8), rng.choices(words.words, k=8))]
    tools = [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": words.text(12),
                "parameters": {
                    "type": "object",
                    "properties": {
                        key: {"type": "string", "description": words.text(8)} for key in rng.sample(words.words, 4)
                    },
                },
            },
        }
        for name in names
    ]
    messages = [{"role": "system", "content": words.text(150)}]
    for _ in range(rounds):
        calls = [
            golden.call(
                f"call{rng.randrange(10**5):05}",
                rng.choice(names),
                {rng.choice(words.words): words.text(3), "limit": rng.randrange(100)},
            )
            for _ in range(rng.choice((1, 1, 2)))
        ]
        messages += [
            {"role": "user", "content": words.text(40)},
            {"role": "assistant", "content": "", "tool_calls": calls},
        ]
        value = words.text(2)
        messages += [
            {
                "role": "tool",
                "tool_call_id": call["id"],
                "name": call["function"]["name"],
                "content": json.dumps(
                    {
                        "items": [
                            {"title": words.text(4), "score": rng.random(), "text": words.text(40)} for _ in range(4)
                        ],
                        "key": value,
                    }
                ),
            }
            for call in calls
        ]
        messages.append({"role": "assistant", "content": f"{words.text(30)} {value} {words.text(30)}."})
    return parse_record({"id": f"bench-{number}", "messages": messages, "tools": tools}, "bench")


def measure(tokenizer, records: list[Record], repeats: int) -> dict:
    encode(records[0], tokenizer)  # compiles the template
    rates, walls = [], []
    for _ in range(repeats):
        start, wall = time.process_time(), time.perf_counter()
        tokens = sum(len(encode(record, tokenizer).input_ids) for record in records)
        rates.append(tokens / (time.process_time() - start))
        walls.append(tokens / (time.perf_counter() - wall))
    return {
        "tokens_per_record": round(tokens / len(records)),
        "tokens_per_processor_second": round(statistics.median(rates)),
        "spread": [round(min(rates)), round(max(rates))],
        "tokens_per_wall_second": round(statistics.median(walls)),
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens a second of rendering and span extraction.")
    parser.add_argument("--vocab-size", type=count, default=150_000)
    parser.add_argument("--records", type=count, default=20)
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--output", type=path_option, default=ROOT / "benchmarks/results/span_throughput.json")
    args = parser.parse_args()
    check_out(args.output)
    words = Words(int(args.vocab_size * 1.1), random.Random(1337))
    tokenizer = build_tokenizer(words, args.vocab_size)
    results = {}
    for rounds in (1, 4, 20):
        records = [make_record(words, number, rounds) for number in range(max(args.records // rounds, 2))]
        for name in TEMPLATES:
            tokenizer.chat_template = golden.template(name)
            results[f"{name}, {rounds} rounds"] = measure(tokenizer, records, args.repeats)
            print(name, rounds, results[f"{name}, {rounds} rounds"], flush=True)
    report = {
        "what": "kd.rendering.encode.encode, one process, one thread",
        "vocab_size": len(tokenizer),
        "processor": processor(),
        "python": platform.python_version(),
        "tokenizers": tokenizers.__version__,
        "transformers": transformers.__version__,
        "lowest": min(result["tokens_per_processor_second"] for result in results.values()),
        "results": results,
    }
    write_json(args.output, report)


if __name__ == "__main__":
    main()
