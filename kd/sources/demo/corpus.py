"""Demo corpus: composed tool-use records, the tokenizer trained on them, and the held-out splits.

    record(kind, index, seed=..., split="train")     one record, the same in every process
    build_tokenizer(folder)                           byte-level BPE and a Hermes-style chat template

Splits: `train`; `unseen_values` (training's tools, argument values never drawn in training); `unseen_tools` (tools that
no training record offers). Kinds: `echo` (copying practice without tools), `single`, `parallel`, `multi` (two rounds),
`none` (no offered tool fits), `chat` (nothing to do), and the near misses `near`, `missing`, `answered` and their
practice `fits` (kd/sources/demo/near_misses.py), which are taught and are in no held-out split. Numbers below ten,
enums and wording are shared by all splits.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kd.atomic_files import describe_failure, publish
from kd.config.sections.data import DEMO_KINDS, DEMO_SPLITS
from kd.outputs import Output, OutputError, check_outputs, read_object
from kd.paths import path_option
from kd.records.files import write_records
from kd.records.record import Record
from kd.sources.demo.exchanges import TOOLS, dress, make_request, make_round, offer, refuse
from kd.sources.demo.near_misses import make_answered, make_fits, make_missing, make_near
from kd.sources.demo.vocabulary import PARAMETERS, Draw, Tool

KINDS, SPLITS = DEMO_KINDS, DEMO_SPLITS
# The held-out splits hold every kind that a user meets; echo records are practice alone.
EVALUATION_MIX = {"single": 0.5, "parallel": 0.15, "multi": 0.1, "none": 0.2, "chat": 0.05}

_CHAT = (
    ("Hello there", "Hello! What can I do for you?"),
    ("Good morning", "Good morning! How can I help?"),
    ("Thanks a lot", "You are welcome."),
    ("Who are you", "I am an assistant with tools."),
    ("That is all for today", "Goodbye!"),
    ("What can you do", "I call tools and report their results."),
)


def _echo(draw: Draw) -> list[dict]:
    plain = [n for n, p in PARAMETERS.items() if p.schema["type"] in ("string", "integer", "number")]
    names = draw.rng.sample(plain, draw.rng.choice((3, 6, 9, 12)))
    text = " ".join(str(PARAMETERS[n].make(draw)) for n in names)
    return [{"role": "user", "content": text}, {"role": "assistant", "content": text}]


def record(kind: str, index: int, *, seed: int = 0, split: str = "train", short: bool = False) -> Record:
    """Make record number `index` of a kind, fixed by (kind, index, seed, split); `short` offers at most one distractor.

    Raises:
        ValueError: an unknown kind or split.
    """
    if kind not in KINDS or split not in SPLITS:
        raise ValueError(
            f"demo record kind {kind!r} in split {split!r}: kinds are {', '.join(KINDS)}, splits {', '.join(SPLITS)}"
        )
    rng = random.Random(f"{seed}:{split}:{kind}:{index}")
    draw = Draw(rng, held_out=split != "train")
    wanted: list[Tool] = []
    forbidden: tuple[Tool, ...] = ()
    if kind == "echo":
        messages = _echo(draw)
    elif kind == "chat":
        question, answer = rng.choice(_CHAT)
        messages = [
            {"role": "user", "content": question + rng.choice(("", ".", "!"))},
            {"role": "assistant", "content": answer},
        ]
    elif kind == "none":
        forbidden = (rng.choice(TOOLS[split]),)
        messages = [dress(make_request(forbidden[0], draw).text, rng), refuse(rng)]
    elif kind == "near":
        messages, wanted, forbidden = make_near(split, draw)
    elif kind == "fits":
        messages, wanted, forbidden = make_fits(split, draw, easy=short)
    elif kind in ("missing", "answered"):
        wanted = [rng.choice(TOOLS[split])]
        messages = (make_missing if kind == "missing" else make_answered)(wanted[0], draw)
    else:
        wanted = rng.sample(TOOLS[split], 1 if kind == "single" else 2)
        if kind == "parallel":
            if rng.random() < 0.4:
                wanted[1] = wanted[0]
            messages = make_round(wanted, draw, 0)
        else:
            messages = [m for at, tool in enumerate(wanted) for m in make_round([tool], draw, at)]
    if kind in ("echo", "fits"):
        offered = wanted
    else:
        offered = offer(wanted, split, rng, forbidden=forbidden)
        if short:
            offered = [t for t in offered if t in wanted] + [t for t in offered if t not in wanted][:1]
            rng.shuffle(offered)
    return Record(
        id=f"{split}-{kind}-{seed}-{index}", messages=messages, tools=[t.schema() for t in offered], meta={"kind": kind}
    )


def records(split: str, num_records: int, *, seed: int = 0, mix: dict[str, float] | None = None) -> Iterator[Record]:
    """Yield `num_records` records of a split; their kinds are drawn from `mix` (kind -> weight; EVALUATION_MIX)."""
    mix = mix or EVALUATION_MIX
    rng = random.Random(f"{seed}:{split}:kinds")
    for index, kind in enumerate(rng.choices(list(mix), list(mix.values()), k=num_records)):
        yield record(kind, index, seed=seed, split=split)


# Brackets, not dots: the sandbox that templates run in checks every attribute it reads, which costs a third of a
# rendering.
TEMPLATE = "chat_template.jinja"  # of a saved tokenizer too
CHAT_TEMPLATE = Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8").removesuffix("\n")
SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|tools|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CALL_TOKENS = ("<tool_call>", "</tool_call>")


def build_tokenizer(folder: str | Path, *, vocab_size: int = 1024, num_records: int = 3000, seed: int = 0):
    """Train the demo's byte-level BPE tokenizer, save it as a transformers tokenizer and return it.

    Words, digits and brackets are split apart, so a value is the same tokens in a request, in the JSON and in an
    answer, and every quote or brace that bounds a span is a token of its own. Rare words stay in pieces: training sees
    the wording and the schemas often, each drawn value once.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    pieces = Regex(r'": "?|", "?|[A-Za-z]+|[0-9]|[{}\[\]"]|[ ,:.]+|[^A-Za-z0-9{}\[\]" ,:.]')
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS + CALL_TOKENS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    mix = {"single": 0.6, "parallel": 0.2, "none": 0.15, "chat": 0.05}
    core.train_from_iterator((_plain_text(r) for r in records("train", num_records, seed=seed, mix=mix)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def _plain_text(record: Record) -> str:
    """Join the text that the tokenizer is trained on: requests, calls, results, answers and signatures."""
    parts = [json.dumps(record.tools)]
    for message in record.messages:
        parts.append(message["content"] or "")
        parts += [json.dumps(c["function"]) for c in message.get("tool_calls", ())]
    return "\n".join(parts)


def _is_ours(path: Path) -> bool:
    if path.name == TEMPLATE:
        return path.read_bytes() == CHAT_TEMPLATE.encode()
    return str(read_object(path).get("id")).startswith(tuple(f"{split}-" for split in SPLITS))


def main(argv: list[str] | None = None) -> None:
    """Write the tokenizer, or records of a split as JSONL: python -m kd.sources.demo.corpus --tokenizer FOLDER."""
    import argparse

    parser = argparse.ArgumentParser(description="The demo corpus and its tokenizer.")
    parser.add_argument("--tokenizer", type=path_option, metavar="FOLDER", help="train the tokenizer and save it here")
    parser.add_argument("--records", type=path_option, metavar="FILE", help="write records here, as JSON lines")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, help="in equal shares; those of the held-out splits by default"
    )
    parser.add_argument("--num-records", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1337)
    args = parser.parse_args(argv)
    if not args.tokenizer and not args.records:
        parser.error("nothing to do: give --tokenizer FOLDER or --records FILE")
    if args.num_records < 1:
        parser.error("--num-records: 1 or more")
    outputs = [Output("--tokenizer", args.tokenizer / TEMPLATE, "this tokenizer's", _is_ours)] if args.tokenizer else []
    if args.tokenizer and any(args.tokenizer.glob("*")) and not (args.tokenizer / TEMPLATE).exists():
        parser.error(f"--tokenizer: {args.tokenizer} holds something else: name a new folder")
    if args.records:
        outputs.append(Output("--records", args.records, "records of this corpus", _is_ours))
    try:
        check_outputs(outputs)
    except OutputError as error:
        parser.error(str(error))
    try:
        if args.tokenizer:
            print(f"{args.tokenizer}: {_write_tokenizer(args.tokenizer, args.seed)} tokens")
        if args.records:
            mix = dict.fromkeys(args.kinds, 1.0) if args.kinds else None
            count = write_records(args.records, records(args.split, args.num_records, seed=args.seed, mix=mix))
            print(f"{args.records}: {count} records")
    except OSError as error:
        parser.exit(1, f"error: {describe_failure(error)}\n")


def _write_tokenizer(folder: Path, seed: int) -> int:
    """Write the tokenizer's files, each whole or not at all, the one that they are known by first; count its tokens."""
    with tempfile.TemporaryDirectory() as made:
        tokenizer = build_tokenizer(made, seed=seed)
        for path in sorted(Path(made).iterdir(), key=lambda path: path.name != TEMPLATE):
            publish(folder / path.name, path.read_bytes())
    return len(tokenizer)


if __name__ == "__main__":
    main()
