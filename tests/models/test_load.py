"""Saved models that cannot be read, or are not as asked: each an error of ours, whatever type a library raises."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.tiny_models import SIZES
from kd.config.schema import Student
from kd.models.layer_pruning import write_cut
from kd.models.load import count_parameters, load_causal_lm, read_model_config, read_stop_ids
from kd.models.model_files import ModelNotFound, StudentError


def _save_config(folder, text):
    folder.mkdir()
    (folder / "config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"model_type": "no_such_family"}', ".*no_such_family"),
        ('{"model_type": "llama", "hidden_size": "wide"}', ".*hidden_size"),
        ('{"model_type": "llama", "rope_parameters": 3}', ".*rope_parameters"),
    ],
)
def test_a_damaged_configuration(tmp_path, text, shown):
    path = _save_config(tmp_path / "model", text)
    with pytest.raises(
        StudentError, match=f"student.path: .*config.json' is not a model that can be read here{shown}.*; mend it"
    ):
        read_model_config(path, key="student.path")


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ModelNotFound, match="nowhere': no such folder is here"):
        read_model_config(tmp_path / "nowhere", local_files_only=True)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "no model.safetensors, .*copy"), (b"no tensors", "model.safetensors: damaged or cut")]
)
def test_weights_that_cannot_be_read(tmp_path, content, said):
    made = LlamaConfig(**SIZES, num_hidden_layers=3)
    made.save_pretrained(tmp_path)
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(StudentError, match=f"{tmp_path}.*{said}"):
        load_causal_lm(tmp_path, dtype="fp32")
    student = Student(init="teacher_layers", num_hidden_layers=2)
    with pytest.raises(StudentError, match=f"{tmp_path}.*{said}"):
        write_cut(str(tmp_path), None, student, made, str(tmp_path / "out"))


def test_a_model_that_is_no_causal_lm(tmp_path):
    path = _save_config(tmp_path / "model", '{"model_type": "t5"}')
    with pytest.raises(StudentError, match="a t5 model is no causal LM"):
        load_causal_lm(path, dtype="fp32")


def test_a_model_in_another_precision_than_asked_is_refused(monkeypatch):
    """A living HfDeepSpeedConfig of another model does this silently."""
    made = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, num_hidden_layers=1), dtype=torch.bfloat16)
    monkeypatch.setattr("kd.models.load.AutoModelForCausalLM.from_config", lambda *args, **options: made)
    with pytest.raises(StudentError, match="12 weights are not torch.float32"):
        load_causal_lm(None, made.config, dtype="fp32")


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("config.json", {"hidden_act": "nope"}, "its config.json: cannot be loaded here: KeyError: 'nope'"),
        ("config.json", {"dtype": "int8"}, "its config.json: cannot be loaded here: .*not a floating-point dtype"),
        ("config.json", {"rope_parameters": {"rope_type": "nope"}}, "its config.json: cannot be loaded here: KeyError"),
        ("config.json", {"pad_token_id": 10**9}, "its config.json: cannot be loaded here: .*Padding_idx"),
        ("generation_config.json", {"eos_token_id": "x"}, "generation_config.json: eos_token_id is 'x', and a number"),
        ("generation_config.json", {"eos_token_id": [[1]]}, r"generation_config.json: eos_token_id is \[\[1\]\], and"),
        ("generation_config.json", {"eos_token_id": True}, "generation_config.json: eos_token_id is True, and a n"),
    ],
)
def test_values_that_no_model_is_made_of_are_told_with_their_file(teacher_folder, tmp_path, file, values, said):
    """Each ended the plan, or the making of the student, in a traceback."""
    folder = shutil.copytree(teacher_folder, tmp_path / "model")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))
    with pytest.raises(StudentError, match=f"{re.escape(str(folder))}.*{said}"):
        read_stop_ids(folder)
        count_parameters(read_model_config(folder))
