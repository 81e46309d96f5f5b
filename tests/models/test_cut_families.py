"""Students cut from, or continued from, each family of dense decoders: trained under ZeRO-3, exported, read again."""

from __future__ import annotations

import json
from pathlib import Path

import deepspeed
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeConfig

from helpers.forked import run_ranks
from helpers.tiny_models import SIZES
from helpers.tiny_training import VOCAB_SIZE, NoTokenizer, logits, step
from kd.checkpoints.export_hf import export_student
from kd.config.deepspeed.fill import resolve_ds_config
from kd.config.load import load_config
from kd.models.layer_pruning import CutError
from kd.models.lm_head import UnsupportedHead, head_scaling
from kd.models.student import build_student, student_model_config
from kd.preflight.memory import Shape
from kd.training.engine import StudentEngine

MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
FAMILIES = {  # what differs from SIZES
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 16},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0], "pad_token_id": 0},
    "granite": {"embedding_multiplier": 2.0, "logits_scaling": 4.0, "residual_multiplier": 0.5, "pad_token_id": 0},
    "gemma2": {"final_logit_softcapping": 5.0, "sliding_window": 16, "layer_types": MIXED},
    "gemma3_text": {"final_logit_softcapping": 5.0, "sliding_window": 16, "layer_types": MIXED},
    "phi": {"num_key_value_heads": 8},
    "olmo": {"pad_token_id": 0},
    "olmo2": {"pad_token_id": 0},
}  # fmt: skip
QUICK = ("gemma3_text", "phi")
CONFIG = """\
run: {{name: t, output_dir: {out}}}
teacher: {{path: {teacher}, dtype: fp32}}
student: {{dtype: fp32, {student}, attention_implementation: eager}}
data: {{stages: [{{name: a, train: [x], max_length: 32}}]}}
optimizer: {{lr: 1e-2}}
training: {{steps: 5, deepspeed: {out}/ds.json}}
"""
CUT, WHOLE = (
    "init: teacher_layers, layers: [0, 1, 3], num_key_value_heads: 2",
    "init: teacher_layers, num_hidden_layers: 4",
)


def make_teacher(family: str, folder: Path) -> None:
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **SIZES | FAMILIES[family], num_hidden_layers=4, eos_token_id=1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)


def configure(out: Path, teacher: Path, student: str):
    zero = json.loads(Path("ds_configs/zero3_cpu.json").read_text())
    zero["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (out / "ds.json").write_text(json.dumps(zero))
    (out / "run.yaml").write_text(CONFIG.format(out=out, teacher=teacher, student=student))
    return load_config(out / "run.yaml")


def train_and_export(families, out: Path) -> None:
    for family in families:
        print(family, flush=True)  # into the log of a rank that hangs
        config = load_config(out / family / "run.yaml")
        settings = resolve_ds_config(config.training, config.optimizer, config.student)
        model = build_student(
            config.student, config.teacher, work_dir=out / family, seed=1, max_length=32, ds_config=settings
        )
        assert all(parameter.numel() == 0 for parameter in model.parameters())
        engine = StudentEngine(model, config.loss, config.optimizer, settings, VOCAB_SIZE)
        losses = [step(engine, number) for number in range(5)]
        export_student(model, NoTokenizer(), out / family / "student")
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            torch.save((losses, {k: v.clone() for k, v in model.state_dict().items()}), out / family / "trained.pt")
        engine.close()


def check(families, out: Path) -> None:
    for family in families:
        (out / family).mkdir()
        make_teacher(family, out / family / "teacher")
        configure(out / family, out / family / "teacher", CUT)
    run_ranks(2, lambda: train_and_export(families, out), out / "log", timeout=600)
    for family in families:
        losses, weights = torch.load(out / family / "trained.pt")
        assert losses[-1] < losses[0] * 0.95, (family, losses)
        student = AutoModelForCausalLM.from_pretrained(out / family / "student", attn_implementation="eager")
        made = AutoModelForCausalLM.from_config(student.config, attn_implementation="eager")
        made.load_state_dict(weights)
        assert torch.equal(logits(made), logits(student)), family
        assert student.config.num_hidden_layers == 3
        whole = build_student(
            configure(out / family, out / family / "teacher", WHOLE).student,
            load_config(out / family / "run.yaml").teacher,
            work_dir=out / family,
            seed=1,
            max_length=32,
        )
        teacher = AutoModelForCausalLM.from_pretrained(out / family / "teacher", attn_implementation="eager")
        assert torch.equal(logits(whole), logits(teacher)), family  # cutting nothing


def test_a_cut_is_trained_on_two_ranks_exported_and_read_again(tmp_path):
    check(QUICK, tmp_path)


@pytest.mark.slow
def test_of_every_family_a_cut_is_trained_exported_and_read_again(tmp_path):
    check([family for family in FAMILIES if family not in QUICK], tmp_path)


def test_teachers_that_cannot_be_cut_are_refused_by_name(tmp_path):
    sizes = SIZES | {"num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    Qwen3MoeConfig(**sizes).save_pretrained(tmp_path)
    config = configure(tmp_path, tmp_path, WHOLE)
    with pytest.raises(CutError, match="the qwen3_moe teacher's layers are mixtures of experts"):
        student_model_config(config.student, config.teacher, max_length=32)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "falcon", "mamba", "mpt"])
def test_families_with_other_names_of_sizes(tmp_path, kind):
    """Each was an AttributeError of Python's: in the plan, the student's positions, and the cut."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    config = configure(tmp_path, tmp_path, WHOLE)
    with pytest.raises(CutError, match=rf"a {kind} teacher's config.json has no .*laid out in a way of their own"):
        student_model_config(config.student, config.teacher, max_length=32)
    student = config.student.model_copy(update={"init": "checkpoint", "path": str(tmp_path)})
    shape = Shape.of(student_model_config(student, None, max_length=32), 1)
    assert min(shape.hidden_size, shape.intermediate_size, shape.num_layers, shape.kv_width, shape.vocab_size) > 1


def test_a_head_that_cannot_be_expressed_is_refused_by_name():
    config = AutoConfig.for_model("llama", **SIZES)
    config.output_multiplier_scale = 0.5
    with pytest.raises(UnsupportedHead, match="llama: its configuration has output_multiplier_scale = 0.5"):
        head_scaling(config)
