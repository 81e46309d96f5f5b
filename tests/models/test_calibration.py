"""Layers and neurons that a sample of the data does not need are the ones that a cut leaves out."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.tiny_models import SIZES
from kd.config.load import load_config
from kd.models.calibration import choose_layers, importance_of, sample_tokens
from kd.models.layer_pruning import CutError
from kd.models.student import build_run_student, build_student

IDLE_LAYERS, DEAD = (1, 3), slice(0, 128, 2)
CONFIG = """\
run: {{name: t}}
teacher: {{path: {teacher}, dtype: fp32}}
student: {{init: teacher_layers, dtype: fp32, calibration_records: 4, {student}}}
data: {{demo: {{num_records: 8}}, stages: [{{name: a, mix: {{single: 1}}, max_length: 256}}]}}
training: {{steps: 10, deepspeed: ds_configs/zero3_cpu.json}}
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tokenizer) -> tuple[Path, torch.nn.Module]:
    """A model in which two layers do next to nothing, and half of the neurons nothing at all."""
    torch.manual_seed(2)
    sizes = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_hidden_layers=5, initializer_range=0.2)).eval()
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            layer.mlp.up_proj.weight[DEAD] = 0
            for matrix in (layer.mlp.down_proj, layer.self_attn.o_proj) if number in IDLE_LAYERS else ():
                matrix.weight.mul_(1e-3)
    folder = tmp_path_factory.mktemp("idle")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model


def configure(tmp_path, teacher: Path, student: str):
    (tmp_path / "run.yaml").write_text(CONFIG.format(teacher=teacher, student=student))
    return load_config(tmp_path / "run.yaml")


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(torch.arange(40).view(2, 20) * 11).logits


def test_influence_by_hand(teacher):
    """1 - cos of input and output, a mean over the tokens of a sample and then over samples."""
    _, model = teacher
    samples = [[3, 1, 4, 1, 5], [9, 2, 6]]
    found, wanted, norms = importance_of(model, samples), [], []
    for sample in samples:
        with torch.no_grad():
            seen = model(torch.tensor([sample]), output_hidden_states=True).hidden_states
        pairs = list(zip(seen[:-2], seen[1:-1]))  # the last one is behind the final norm
        wanted.append(torch.stack([1 - torch.cosine_similarity(a, b, dim=-1).mean() for a, b in pairs]))
    torch.testing.assert_close(found.influence[:4], torch.stack(wanted).mean(0), rtol=1e-4, atol=1e-6)
    norms = found.neurons
    assert torch.all(norms[:, DEAD] == 0) and torch.all(norms[:, 1::2] > 0) and norms.shape == (5, 128)
    assert choose_layers(found.influence, 3) == (0, 2, 4)


def test_what_does_nothing_is_cut_and_the_logits_stay(teacher, tmp_path, tokenizer):
    path, model = teacher
    student = "choose_layers: influence, num_hidden_layers: 3, intermediate_size: 64"
    cut = build_run_student(configure(tmp_path, path, student), tokenizer, work_dir=tmp_path)
    assert cut.config.num_hidden_layers == 3 and cut.config.intermediate_size == 64
    assert torch.equal(cut.model.layers[1].mlp.up_proj.weight, model.model.layers[2].mlp.up_proj.weight[1::2])
    even = build_run_student(configure(tmp_path, path, "layers: [0, 1, 4]"), tokenizer, work_dir=tmp_path)

    def distance(student) -> float:
        return float((logits(student) - logits(model)).norm())

    assert distance(cut) < 0.2 * distance(even)
    narrow = build_run_student(
        configure(tmp_path, path, "num_hidden_layers: 5, intermediate_size: 64"), tokenizer, work_dir=tmp_path
    )
    torch.testing.assert_close(logits(narrow), logits(model), rtol=1e-5, atol=1e-5)  # another order of sums


def test_a_sample_is_measured_once_and_again_for_another_number(teacher, tmp_path, tokenizer):
    config = configure(tmp_path, teacher[0], "choose_layers: influence, num_hidden_layers: 2")
    first = build_run_student(config, tokenizer, work_dir=tmp_path)
    file = tmp_path / "importance.safetensors"
    made = file.stat().st_mtime_ns
    again = build_run_student(config, tokenizer, work_dir=tmp_path)
    assert file.stat().st_mtime_ns == made and torch.equal(logits(first), logits(again))
    other = config.model_copy(update={"student": config.student.model_copy(update={"calibration_records": 2})})
    build_run_student(other, tokenizer, work_dir=tmp_path)
    assert file.stat().st_mtime_ns != made
    assert len(sample_tokens(config.data, tokenizer, 4, 1)) == 4


@pytest.mark.parametrize("held", ["", "text in place of weights", "no measures", "no numbers", "of another depth"])
def test_a_damaged_measure_is_taken_again(teacher, tmp_path, tokenizer, held):
    """Each was an error of Python, or layers chosen by numbers that are none."""
    config = configure(tmp_path, teacher[0], "choose_layers: influence, num_hidden_layers: 2, intermediate_size: 64")
    first = build_run_student(config, tokenizer, work_dir=tmp_path)
    file = tmp_path / "importance.safetensors"
    with safe_open(file, "pt") as opened:
        said, was = opened.metadata(), opened.get_tensor("influence").clone()
    wrong = {"no measures": {"other": was}, "no numbers": {"influence": was * math.nan, "neurons": torch.zeros(5, 128)}}
    wrong["of another depth"] = {"influence": was[:3].clone(), "neurons": torch.zeros(5, 128)}
    file.write_bytes(save(wrong[held], said) if held in wrong else held.encode())
    again = build_run_student(config, tokenizer, work_dir=tmp_path)
    assert torch.equal(logits(first), logits(again)) and torch.equal(load_file(file)["influence"], was)
    file.write_bytes(held.encode())  # it is looked at where layers are listed too
    listed = configure(tmp_path, teacher[0], "layers: [0, 4]")
    build_run_student(listed, tokenizer, work_dir=tmp_path)


def test_a_measure_is_of_one_teacher_and_one_sample(teacher, tmp_path, tokenizer):
    """Another teacher at the same place, and other data, were cut by what was measured before."""
    place = tmp_path / "teacher"
    shutil.copytree(teacher[0], place)
    config = configure(tmp_path, place, "choose_layers: influence, num_hidden_layers: 2")
    measured = []
    for seed in (None, 1, 2):
        if seed == 2:
            weights = load_file(place / "model.safetensors")
            weights["model.layers.0.self_attn.o_proj.weight"] *= 0
            save_file(weights, place / "model.safetensors", {"format": "pt"})
        run = config.run if seed is None else config.run.model_copy(update={"seed": 1})
        build_run_student(config.model_copy(update={"run": run}), tokenizer, work_dir=tmp_path)
        measured.append(load_file(tmp_path / "importance.safetensors")["influence"])
    assert not torch.equal(measured[0], measured[1]) and not torch.equal(measured[1], measured[2])
    save_file(
        {name: value * math.nan for name, value in weights.items()}, place / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CutError, match="numbers that are not finite: look at its weights, or give student.layers"):
        build_run_student(config, tokenizer, work_dir=tmp_path)


def test_what_cannot_be_cut_so_is_refused(teacher, tmp_path):
    config = configure(tmp_path, teacher[0], "num_hidden_layers: 5, intermediate_size: 129")
    with pytest.raises(CutError, match="intermediate_size is 129 and the teacher's is 128: give as much or less"):
        build_student(config.student, config.teacher, work_dir=tmp_path, seed=1, max_length=32)
    config = configure(tmp_path, teacher[0], "num_hidden_layers: 5, intermediate_size: 64")
    with pytest.raises(CutError, match="no sample of the data was measured"):
        build_student(config.student, config.teacher, work_dir=tmp_path, seed=1, max_length=32)
    with pytest.raises(ValueError, match="influence is for init: teacher_layers with num_hidden_layers"):
        configure(tmp_path, teacher[0], "layers: [0, 1], choose_layers: influence")
