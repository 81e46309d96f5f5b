"""Files of a data set: a file of records a split, and the data card.

The records are written in the order of their tasks. The card says what the set was made of and with, what was dropped
and why, and what it did cost; all but the cost is the same however often the making was interrupted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kd.atomic_files import publish, replacing
from kd.config.sections.generation import GenerationConfig
from kd.generation.journal import Journal
from kd.generation.prompts.splits import SPLITS, TRAIN
from kd.hashing import sha256
from kd.outputs import Output, read_object
from kd.toolcalls.json_values import encode_json

CARD = "card.json"
Card = dict[str, Any]


def list_outputs(out: Path) -> list[Output]:
    """List the files of a data set in its folder."""
    records = [
        Output("output_dir", out / f"{split}.jsonl", "a generated file of records", _is_records) for split in SPLITS
    ]
    return [*records, Output("output_dir", out / CARD, "a data card", lambda path: "fingerprint" in read_object(path))]


def _is_records(path: Path) -> bool:
    found = read_object(path)
    return isinstance(found.get("meta"), dict) and {"kind", "quality_parts"} <= found["meta"].keys()


def write_records(out: Path, keys: Iterable[bytes], journal: Journal) -> Card:
    """Write the records of these conversations that are in the journal, and return their part of the card.

    Raises:
        OSError: a file cannot be written; those that were there stay.
    """
    counts, notes, kinds, dropped = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    qualities: dict[str, list[float]] = {}
    specs: Counter[str] = Counter()
    tokens = [0, 0]
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for key in keys:
            value = journal.find("done", key.hex())
            if value is None:
                counts["open"] += 1
                continue
            counts["prompts"] += 1
            notes.update(value.get("notes", {}))
            tokens = [one + other for one, other in zip(tokens, value.get("usage", [0, 0]))]
            record = value.get("record")
            if record is None:
                dropped[value["problem"]] += 1
                continue
            split = value["split"]
            if split not in files:
                files[split] = stack.enter_context(replacing(out / f"{split}.jsonl"))
            files[split].write(encode_json(record) + b"\n")
            counts[split] += 1
            kinds[value["kind"]] += 1
            specs.update([record["caws"]["id"]] if "caws" in record else [])
            for name, part in {"quality": record["quality"], **record["meta"]["quality_parts"]}.items():
                mean = qualities.setdefault(name, [0.0, 0])
                mean[0], mean[1] = mean[0] + part, mean[1] + 1
    for split in SPLITS:
        if split not in files and (out / f"{split}.jsonl").exists():
            (out / f"{split}.jsonl").unlink()  # of an earlier set: check_outputs has recognised it
    made = {
        split: {"records": counts[split], "sha256": sha256(out / f"{split}.jsonl")} for split in SPLITS if counts[split]
    }
    return {
        "files": made,
        "prompts": counts["prompts"],
        "open": counts["open"],
        "records": sum(one["records"] for one in made.values()),
        "kinds": dict(sorted(kinds.items())),
        "dropped": dict(sorted(dropped.items())),
        "notes": dict(sorted(notes.items())),
        "quality": {name: round(total / num, 4) for name, (total, num) in sorted(qualities.items())},
        **({"caws": dict(sorted(specs.items()))} if specs else {}),
        "tokens": {"prompt": tokens[0], "completion": tokens[1]},
    }


def describe_config(config: GenerationConfig) -> Card:
    """Describe the configuration for the card, without folders and without the name of the key's variable."""
    told = config.model_dump(mode="json", exclude={"output_dir", "extensions"})
    told["endpoint"] = {"model": config.endpoint.model}
    if config.broker.endpoint is not None:
        told["broker"]["endpoint"] = {"model": config.broker.endpoint.model}
    for section, key in (("prompts", "tools"), ("broker", "fixtures")):
        told[section][key] = told[section][key] and Path(told[section][key]).name
    told["prompts"]["files"] = told["prompts"]["files"] and [Path(one).name for one in told["prompts"]["files"]]
    if config.caws is not None:
        told["caws"]["project"] = Path(config.caws.project).resolve().name
    return told


def write_card(out: Path, card: Card) -> None:
    """Write the data card."""
    publish(out / CARD, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())


def format_card(card: Card) -> str:
    """Write the card's figures for a terminal."""
    lines = [f"records    {card['records']:,} of {card['prompts']:,} prompts"]
    lines += [f"  {split:<17} {one['records']:>8,}" for split, one in card["files"].items() if split != TRAIN]
    lines += (
        [f"kinds      {', '.join(f'{name} {num:,}' for name, num in card['kinds'].items())}"] if card["kinds"] else []
    )
    lines += [f"dropped    {num:>8,}  {reason}" for reason, num in card["dropped"].items()]
    lines += [f"noted      {num:>8,}  {name.replace('_', ' ')}" for name, num in card["notes"].items() if num]
    lines += [f"left out   {num:>8,}  {name} prompts" for name, num in card["duplicates"].items() if num]
    lines += [f"quality    {', '.join(f'{name} {mean:.3f}' for name, mean in card['quality'].items())}"]
    tokens = card["tokens"]
    lines.append(f"tokens     {tokens['prompt']:,} sent, {tokens['completion']:,} generated")
    spent, limit = card["spent"], card["config"]["spending"]["limit"]
    lines.append(f"spent      {spent['total']:.6g}" + (f" of {limit:g}" if limit is not None else ""))
    if spent["unknown"]:
        lines.append(f"           {spent['unknown']:,} requests without usage, at their bounds")
    if spent["over"]:
        lines.append(f"           {spent['over']:,} answers over their bounds: raise spending.overhead_tokens")
    return "\n".join(lines)
