"""Model, tokenizer and data folders broken in one way each, and the words that an error about them must have."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Case(NamedTuple):
    """One way to break a copy of the tiny teacher's folder or the data file.

    Attributes:
        damage: is given the model's folder and the data file.
        names: file that the error must name, and words of its remedy.
        commands: those that meet it; all by default.
    """

    damage: Callable[[Path, Path], object]
    names: str
    remedy: str
    commands: tuple[str, ...] = ("train", "verify", "capture", "evaluate")


def edit(file: str, **changes: object) -> Callable[[Path, Path], object]:
    """Change keys of a JSON file of the model's folder; None takes a key away."""

    def damage(model: Path, data: Path) -> None:
        values = {**json.loads((model / file).read_text()), **changes}
        (model / file).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return damage


def write(file: str, content: str | bytes) -> Callable[[Path, Path], object]:
    """Replace a file of the model's folder."""
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda model, data: (model / file).write_bytes(raw)


def truncate(file: str) -> Callable[[Path, Path], object]:
    """Cut a file of the model's folder in half."""
    return lambda model, data: os.truncate(model / file, (model / file).stat().st_size // 2)


def remove(file: str) -> Callable[[Path, Path], object]:
    return lambda model, data: (model / file).unlink()


def replace_by_folder(file: str) -> Callable[[Path, Path], object]:
    return lambda model, data: ((model / file).unlink(), (model / file).mkdir())


def replace_by_socket(file: str) -> Callable[[Path, Path], object]:
    def damage(model: Path, data: Path) -> None:
        (model / file).unlink()
        here = os.getcwd()
        os.chdir(model)  # the path of a socket is short
        try:
            socket.socket(socket.AF_UNIX).bind(file)
        finally:
            os.chdir(here)

    return damage


def name_a_missing_shard(model: Path, data: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    names = {"lm_head.weight": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def drop_a_weight(model: Path, data: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", {"format": "pt"})


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123456\n"
MODELS = ("train", "capture", "evaluate")  # commands that load weights
CASES = {
    "tokenizer.json is cut": Case(truncate("tokenizer.json"), "tokenizer.json", "copy it again"),
    "tokenizer.json is a pointer": Case(write("tokenizer.json", POINTER), "tokenizer.json", "git lfs pull"),
    "tokenizer.json is empty": Case(write("tokenizer.json", ""), "tokenizer.json", "copy it again"),
    "tokenizer.json is an array": Case(write("tokenizer.json", "[]"), "tokenizer.json", "copy it again"),
    "tokenizer.json has no model": Case(edit("tokenizer.json", model=None), "tokenizer.json", "copy it again"),
    "tokenizer.json has an unknown pre-tokenizer": Case(
        edit("tokenizer.json", pre_tokenizer={"type": "NoSuch"}), "tokenizer.json", "tokenizers"
    ),
    "tokenizer.json is missing": Case(remove("tokenizer.json"), "tokenizer.json", "give a folder with"),
    "tokenizer.json is a folder": Case(replace_by_folder("tokenizer.json"), "tokenizer.json", "no file"),
    "tokenizer.json is a socket": Case(replace_by_socket("tokenizer.json"), "tokenizer.json", "no file"),
    "tokenizer_config.json is cut": Case(truncate("tokenizer_config.json"), "tokenizer_config.json", "copy it again"),
    "tokenizer_config.json is an array": Case(
        write("tokenizer_config.json", "[1]"), "tokenizer_config.json", "copy it again"
    ),
    "no chat template": Case(remove("chat_template.jinja"), "chat_template.jinja", "add"),
    "chat template is no jinja": Case(write("chat_template.jinja", "{% for m in %}"), "chat", "template"),
    "config.json is cut": Case(truncate("config.json"), "config.json", "copy it again"),
    "config.json is a pointer": Case(write("config.json", POINTER), "config.json", "git lfs pull"),
    "config.json is missing": Case(remove("config.json"), "config.json", "save_pretrained"),
    "config.json is an array": Case(write("config.json", "[]"), "config.json", "copy it again"),
    "config.json is a folder": Case(replace_by_folder("config.json"), "config.json", "no file"),
    "model_type is unknown": Case(edit("config.json", model_type="no_such"), "config.json", "transformers"),
    "model_type is missing": Case(edit("config.json", model_type=None), "config.json", "model_type"),
    "an encoder": Case(edit("config.json", model_type="bert"), "config.json", "causal"),
    "an encoder and decoder": Case(edit("config.json", model_type="t5"), "config.json", "causal"),
    "a size is text": Case(edit("config.json", hidden_size="wide"), "config.json", "hidden_size"),
    "width is not the weights'": Case(edit("config.json", hidden_size=64), "model.safetensors", "config.json", MODELS),
    "vocabulary is not the weights'": Case(
        edit("config.json", vocab_size=700), "model.safetensors", "config.json", MODELS
    ),
    "a negative number of layers": Case(edit("config.json", num_hidden_layers=-1), "config.json", "models have from 1"),
    "a million layers": Case(
        edit("config.json", num_hidden_layers=10**6), "config.json", "models have from 1 to 4,096"
    ),
    "heads do not divide the width": Case(edit("config.json", num_attention_heads=5), "config.json", "", MODELS),
    "generation_config.json is cut": Case(
        truncate("generation_config.json"), "generation_config.json", "copy it again", MODELS
    ),
    "weights are cut": Case(truncate("model.safetensors"), "model.safetensors", "copy it again", MODELS),
    "weights are a pointer": Case(write("model.safetensors", POINTER), "model.safetensors", "git lfs pull", MODELS),
    "weights are empty": Case(write("model.safetensors", b""), "model.safetensors", "copy it again", MODELS),
    "weights are missing": Case(remove("model.safetensors"), "safetensors", "copy", MODELS),
    "weights are a folder": Case(replace_by_folder("model.safetensors"), "model.safetensors", "no file", MODELS),
    "a shard is missing": Case(name_a_missing_shard, "model-00002-of-00002.safetensors", "copy", MODELS),
    "a weight is missing": Case(drop_a_weight, "model.layers.1.mlp.up_proj.weight", "save", MODELS),
    "data is a line of no JSON": Case(lambda m, d: d.write_text("{broken\n"), "data.jsonl:1", ""),
    "data is empty": Case(lambda m, d: d.write_text(""), "no record", "give"),
    "data has nothing to ask": Case(
        lambda m, d: d.write_text(
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
        ),
        "data.jsonl: nothing to ask in its 1 records",
        "give other records",
        ("evaluate",),
    ),
    "data is missing": Case(lambda m, d: d.unlink(), "data.jsonl", ""),
    "data is no text": Case(lambda m, d: d.write_bytes(b"\xff\xfe\x00" * 50), "data.jsonl", ""),
    "data is a folder": Case(lambda m, d: (d.unlink(), d.mkdir()), "data.jsonl: is a folder", "name its files"),
    "data is a pipe": Case(lambda m, d: (d.unlink(), os.mkfifo(d)), "data.jsonl: is a pipe", "write it to a file"),
}
