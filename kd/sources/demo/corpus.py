"""Demo corpus: composed tool-use records, the tokenizer trained on them, and the held-out splits.

    record(kind, index, seed=..., split="train")     one record, the same in every process
    build_tokenizer(folder)                           byte-level BPE and a Hermes-style chat template

Splits: `train`; `unseen_values` (training's tools, argument values never drawn in training); `unseen_tools` (tools that
no training record offers). Kinds: `echo` (copying practice without tools), `single`, `parallel`, `multi` (two rounds),
`none` (no offered tool fits), `chat` (nothing to do). Numbers below ten, enums and wording are shared by all splits.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd.config.sections.data import DEMO_KINDS, DEMO_SPLITS
from kd.outputs import Output, OutputError, check_outputs, read_object
from kd.paths import path_option
from kd.records.files import write_records
from kd.records.record import Record
from kd.sources.demo.vocabulary import ALL_TOOLS, OBJECTS, PARAMETERS, RESULTS, UNSEEN_TOOLS, Draw, Tool

KINDS, SPLITS = DEMO_KINDS, DEMO_SPLITS
# The held-out splits hold every kind that a user meets; echo records are practice alone.
EVALUATION_MIX = {"single": 0.5, "parallel": 0.15, "multi": 0.1, "none": 0.2, "chat": 0.05}

_OPENINGS = (
    "",
    "",
    "",
    "please ",
    "could you ",
    "can you ",
    "I want you to ",
    "would you ",
    "now ",
    "go ahead and ",
    "I need you to ",
)
_ENDINGS = (".", ".", "", "?", "!", ", thanks.", " please.")
_JOINERS = (" and also ", ". Also ", ", then ", " and ", ". After that ")
_DONE = ("Done", "All set", "Here you go", "Sure", "Okay", "Right")
_NONE = ("None of my tools can do that.", "I have no tool for that.", "Sorry, no tool here fits that.")
_CHAT = (
    ("Hello there", "Hello! What can I do for you?"),
    ("Good morning", "Good morning! How can I help?"),
    ("Thanks a lot", "You are welcome."),
    ("Who are you", "I am an assistant with tools."),
    ("That is all for today", "Goodbye!"),
    ("What can you do", "I call tools and report their results."),
)


def split_tools(split: str) -> list[Tool]:
    """List the tools that a split may offer: the training tools, or for `unseen_tools` the others."""
    return [t for t in ALL_TOOLS.values() if (t.name in UNSEEN_TOOLS) == (split == "unseen_tools")]


_TOOLS = {split: split_tools(split) for split in SPLITS}


def _spoken(value: Any) -> str:
    if isinstance(value, list):
        items = [str(v) for v in value]
        return f"{', '.join(items[:-1])} and {items[-1]}"
    return str(value)


def _said(name: str, value: Any, rng: random.Random) -> str:
    form = rng.choice(PARAMETERS[name].said)
    return form.format(**value) if isinstance(value, dict) else form.format(v=_spoken(value))


def _request(tool: Tool, draw: Draw) -> tuple[str, dict]:
    """Word a request for `tool`, without opening and full stop, and return it with the arguments that it fixes."""
    rng = draw.rng
    arguments = {}
    for parameter in tool.parameters:
        name = parameter.rstrip("?")
        if parameter == name or rng.random() < 0.5:
            arguments[name] = PARAMETERS[name].make(draw)
    phrases = [_said(name, value, rng) for name, value in arguments.items()]
    rng.shuffle(phrases)
    return " ".join([rng.choice(tool.asks), *phrases]), arguments


def _dress(request: str, rng: random.Random) -> str:
    text = rng.choice(_OPENINGS) + request + rng.choice(_ENDINGS)
    return text[0].upper() + text[1:]


def _menu(wanted: list[Tool], split: str, rng: random.Random, *, forbidden: tuple[str, ...] = ()) -> list[Tool]:
    """Choose the tools offered: those wanted, near misses (same verb or same object) and others, shuffled."""
    menu = {t.name: t for t in wanted}
    pool = [t for t in _TOOLS[split] if t.name not in forbidden]
    size = len(menu) + rng.choice((1, 2, 2, 3, 3))
    for tool in [*wanted, *(ALL_TOOLS[name] for name in forbidden)]:
        verb, _, noun = tool.name.partition("_")
        if noun in OBJECTS and rng.random() < 0.5:
            near = [t for t in pool if t.name.endswith(f"_{noun}") or t.name.startswith(f"{verb}_")]
            if near:
                menu.setdefault((t := rng.choice(near)).name, t)
    while len(menu) < size:
        menu.setdefault((t := rng.choice(pool)).name, t)
    offered = list(menu.values())
    rng.shuffle(offered)
    return offered


def _call(tool: Tool, arguments: dict, identity: str) -> dict:
    return {"id": identity, "type": "function", "function": {"name": tool.name, "arguments": arguments}}


def _round(tools: list[Tool], draw: Draw, first_id: int) -> list[dict]:
    """Make one exchange: a request for every tool in `tools`, the calls, their results and the answer that carries
    values.
    """
    rng = draw.rng
    requests = [_request(t, draw) for t in tools]
    user = _dress(rng.choice(_JOINERS).join(text for text, _ in requests), rng)
    calls = [_call(t, arguments, f"call_{first_id + i}") for i, (t, (_, arguments)) in enumerate(zip(tools, requests))]
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": "", "tool_calls": calls}]
    sayings = []
    for call, tool in zip(calls, tools):
        result = {key: RESULTS[key][0](draw) for key in tool.result}
        messages.append({"role": "tool", "tool_call_id": call["id"], "name": tool.name, "content": json.dumps(result)})
        sayings += [rng.choice(RESULTS[key][1]).format(v=_spoken(value)) for key, value in result.items()]
    messages.append({"role": "assistant", "content": f"{rng.choice(_DONE)}: {', and '.join(sayings)}."})
    return messages


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
    pool, wanted, forbidden = _TOOLS[split], [], ()
    if kind == "echo":
        messages = _echo(draw)
    elif kind == "chat":
        question, answer = rng.choice(_CHAT)
        messages = [
            {"role": "user", "content": question + rng.choice(("", ".", "!"))},
            {"role": "assistant", "content": answer},
        ]
    elif kind == "none":
        asked = rng.choice(pool)
        forbidden = (asked.name,)
        messages = [
            {"role": "user", "content": _dress(_request(asked, draw)[0], rng)},
            {"role": "assistant", "content": rng.choice(_NONE)},
        ]
    else:
        wanted = rng.sample(pool, 1 if kind == "single" else 2)
        if kind == "parallel":
            if rng.random() < 0.4:
                wanted[1] = wanted[0]
            messages = _round(wanted, draw, 0)
        else:
            messages = [m for i, tool in enumerate(wanted) for m in _round([tool], draw, i)]
    if kind == "echo":
        offered = []
    else:
        offered = _menu(wanted, split, rng, forbidden=forbidden)
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
    parser.add_argument("--num-records", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1337)
    args = parser.parse_args(argv)
    outputs = [Output("--tokenizer", args.tokenizer / TEMPLATE, "this tokenizer's", _is_ours)] if args.tokenizer else []
    if args.tokenizer and any(args.tokenizer.glob("*")) and not (args.tokenizer / TEMPLATE).exists():
        parser.error(f"--tokenizer: {args.tokenizer} holds something else: name a new folder")
    if args.records:
        outputs.append(Output("--records", args.records, "records of this corpus", _is_ours))
    try:
        check_outputs(outputs)
    except OutputError as error:
        parser.error(str(error))
    if args.tokenizer:
        print(f"{args.tokenizer}: {len(build_tokenizer(args.tokenizer, seed=args.seed))} tokens")
    if args.records:
        count = write_records(args.records, records(args.split, args.num_records, seed=args.seed))
        print(f"{args.records}: {count} records")
    if not args.tokenizer and not args.records:
        parser.error("nothing to do: give --tokenizer FOLDER or --records FILE")


if __name__ == "__main__":
    main()
