"""A tokenizer class that drops the file's own pre-tokenizer gives a text other tokens than serving stacks do."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from kd.models.raw_tokenizer import PROBE, check_raw, check_raw_on_records, read_raw
from kd.models.tokenizer import TokenizerError, read_tokenizer
from kd.sources.demo import corpus as demo
from launch.verify import main as verify


@pytest.fixture
def merged_digits(teacher_folder, tmp_path):
    """The demo's tokenizer, which takes digits one by one, with a token for "12" that only merging digits reaches."""
    folder = shutil.copytree(teacher_folder, tmp_path / "model")
    data = json.loads((folder / "tokenizer.json").read_text())
    last = max(data["model"]["vocab"], key=data["model"]["vocab"].get)
    data["model"]["vocab"]["12"] = data["model"]["vocab"].pop(last)
    data["model"]["merges"][-1] = ["1", "2"]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def set_class(folder, name):
    file = folder / "tokenizer_config.json"
    values = {key: value for key, value in json.loads(file.read_text()).items() if key != "backend"}
    file.write_text(json.dumps({**values, "tokenizer_class": name}))


def test_a_class_that_takes_digits_together_is_refused_with_the_first_difference(merged_digits):
    assert read_tokenizer(merged_digits).tokenize("12") == ["1", "2"]
    set_class(merged_digits, "GPT2Tokenizer")
    loaded = AutoTokenizer.from_pretrained(merged_digits)
    assert loaded.tokenize("12") == ["12"]
    assert Tokenizer.from_file(f"{merged_digits}/tokenizer.json").encode("12").tokens == ["1", "2"]
    with pytest.raises(TokenizerError) as refused:
        read_tokenizer(merged_digits)
    assert re.search(
        r"json: loaded as GPT2Tokenizer, '1234567 3.*' has the ids \[.*\] from '12345' on, and by the file \[",
        str(refused.value),
    )
    assert "set tokenizer_class to PreTrainedTokenizerFast in" in str(refused.value)
    set_class(merged_digits, "PreTrainedTokenizerFast")  # the remedy
    assert read_tokenizer(merged_digits).tokenize("12") == ["1", "2"]


def test_verify_refuses_it(merged_digits, tmp_path, capsys):
    set_class(merged_digits, "GPT2Tokenizer")
    (tmp_path / "data.jsonl").write_text(json.dumps(vars(demo.record("chat", 1))) + "\n")
    assert verify(["--data", f"{tmp_path}/data.jsonl", "--tokenizer", str(merged_digits)]) == 2
    assert "loaded as GPT2Tokenizer" in capsys.readouterr().err


def test_what_the_probe_does_not_show_the_first_records_do(tokenizer_folder, tokenizer, tmp_path):
    """A file that differs from what was loaded in one word of the data."""
    sources: Any = [[demo.record("single", n) for n in range(4)]]
    check_raw_on_records(tokenizer, sources, str(tokenizer_folder))
    folder = shutil.copytree(tokenizer_folder, tmp_path / "t")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["normalizer"] = {"type": "Replace", "pattern": {"String": "integer"}, "content": "number"}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    check_raw(tokenizer, PROBE, read_raw(str(folder)))
    with pytest.raises(TokenizerError, match="by the file"):
        check_raw_on_records(tokenizer, sources, str(folder))


def test_a_tokenizer_without_the_file_is_not_compared(tokenizer, tmp_path):
    check_raw(tokenizer, PROBE, read_raw(str(tmp_path)))
