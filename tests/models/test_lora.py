"""Adapters: trained under ZeRO on two ranks, resumed, merged into a copy and an export; the base stays as it was."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from helpers.forked import run_ranks
from helpers.tiny_models import SIZES
from helpers.tiny_training import VOCAB_SIZE, NoTokenizer, logits, micro_batch, step
from kd.checkpoints.export_hf import export_student
from kd.checkpoints.partitions import FORMAT
from kd.config.deepspeed.fill import resolve_ds_config
from kd.config.load import load_config
from kd.config.problems import ConfigError
from kd.config.schema import Lora
from kd.models.lora import add_adapters, list_merged
from kd.models.model_files import StudentError
from kd.models.student import build_student
from kd.models.whole_copy import WholeCopy
from kd.preflight.memory import Shape, count_adapters
from kd.training.engine import StudentEngine

CONFIG = """\
run: {{name: t, output_dir: {out}}}
student: {{init: checkpoint, path: {base}, dtype: {dtype}, attention_implementation: eager, lora: {{rank: 4, alpha: 8}},
  gradient_checkpointing: {recompute}}}
data: {{stages: [{{name: a, train: [x], max_length: 32}}]}}
optimizer: {{lr: 1e-2}}
training: {{steps: 8, deepspeed: {out}/ds.json}}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=3, eos_token_id=1)).save_pretrained(folder)
    return folder


def configure(out: Path, base: Path, stage: int, dtype: str = "fp32", recompute: bool = True):
    zero = json.loads(Path("ds_configs/zero3_cpu.json").read_text())
    zero["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    if stage == 2:
        zero["zero_optimization"] = {"stage": 2}
    (out / "ds.json").write_text(json.dumps(zero))
    (out / "run.yaml").write_text(CONFIG.format(out=out, base=base, dtype=dtype, recompute=recompute))
    return load_config(out / "run.yaml")


def start(out: Path):
    config = load_config(out / "run.yaml")
    settings = resolve_ds_config(config.training, config.optimizer, config.student)
    model = build_student(config.student, None, work_dir=out, seed=1, max_length=32, ds_config=settings)
    return model, StudentEngine(model, config.loss, config.optimizer, settings, VOCAB_SIZE)


def train(out: Path) -> None:
    model, engine = start(out)
    losses = [step(engine, number) for number in range(4)]
    (out / "checkpoint").mkdir(exist_ok=True)
    engine.save(out / "checkpoint", {"step": 4}, FORMAT)
    losses += [step(engine, number) for number in range(4, 8)]
    export_student(model, NoTokenizer(), out / "student")
    copied = logits(WholeCopy(model, torch.device("cpu")).refresh())
    trained = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    engine.close()
    model, engine = start(out)
    assert engine.load(out / "checkpoint", FORMAT) == {"step": 4}
    resumed = [step(engine, number) for number in range(4, 8)]
    export_student(model, NoTokenizer(), out / "resumed")
    engine.close()
    torch.save((losses, resumed, copied, trained), out / "trained.pt")


@pytest.mark.parametrize(
    ("stage", "dtype", "recompute"),
    [(3, "fp32", True), (3, "fp32", False), (2, "bf16", True)],  # ZeRO-3 without recomputing ended in a traceback
)
def test_adapters_are_trained_resumed_and_merged(tmp_path, base, stage, dtype, recompute):
    pytest.importorskip("peft")
    configure(tmp_path, base, stage, dtype, recompute)
    run_ranks(2, lambda: train(tmp_path), tmp_path / "log", timeout=300)
    losses, resumed, copied, trained = torch.load(tmp_path / "trained.pt")
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    ids, labels = micro_batch().input_ids, micro_batch().input_ids
    wanted = torch.nn.functional.cross_entropy(
        plain(ids, use_cache=False).logits[:, :-1, :VOCAB_SIZE].flatten(0, 1), labels[:, 1:].flatten()
    )
    assert losses[0] == pytest.approx(wanted.item(), rel=1e-5 if dtype == "fp32" else 1e-2)  # B is 0
    assert losses[-1] < losses[0] * 0.95
    assert losses[4:] == resumed
    names = {name for name, _ in plain.named_parameters() if name.endswith("_proj.weight")}
    assert len(trained) == 2 * len(names) and all("lora" in name for name in trained)
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student", attn_implementation="eager")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "resumed", attn_implementation="eager")
    assert torch.equal(logits(student), logits(again))
    assert torch.equal(logits(student), copied)
    before, after = plain.state_dict(), student.state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        same = torch.equal(weight.to(after[name].dtype), after[name])
        assert same != (name in names), name


def test_merged_weights_give_the_adapted_models_logits(tmp_path, base):
    pytest.importorskip("peft")
    config = configure(tmp_path, base, 3)
    model = build_student(config.student, None, work_dir=tmp_path, seed=1, max_length=32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.1)
    plain = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=3, eos_token_id=1, attn_implementation="eager"))
    plain.load_state_dict({weight.name: weight.merge() for weight in list_merged(model)}, strict=False)
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-5, atol=1e-6)
    unadapted = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    assert not torch.allclose(logits(plain), logits(unadapted), atol=1e-2)


def test_the_plan_counts_what_is_trained(tmp_path, base):
    pytest.importorskip("peft")
    config = configure(tmp_path, base, 3)
    for targets in (None, ("q_proj", "mlp.down_proj")):
        lora = Lora(rank=4, target_modules=targets)
        student = config.student.model_copy(update={"lora": lora})
        model = build_student(student, None, work_dir=tmp_path, seed=1, max_length=32)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert count_adapters(Shape.of(model.config, 1), lora) == trained


@pytest.mark.parametrize("kind", ["mixtral", "gpt2"])
def test_only_plain_matrices_are_adapted(kind):
    """Experts were adapted by peft's own choice, and neither merged nor named right: no such export could be read."""
    pytest.importorskip("peft")
    torch.manual_seed(3)
    common = ("vocab_size", "hidden_size", "num_attention_heads")
    sizes = {name: size for name, size in SIZES.items() if kind != "gpt2" or name in common}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, num_hidden_layers=2))
    before = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    if kind == "gpt2":  # its matrices lie the other way round, in a class of its own
        with pytest.raises(StudentError, match="student.lora: GPT2LMHeadModel has no linear layer"):
            add_adapters(model, Lora())
        return
    add_adapters(model, Lora(rank=2))
    adapted = {
        name.rpartition(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_" in name
    }
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {weight.name: tuple(weight.merge().shape) for weight in list_merged(model)} == before


def test_wrong_use_is_told(tmp_path, base, monkeypatch):
    config = configure(tmp_path, base, 3)
    (tmp_path / "run.yaml").write_text((tmp_path / "run.yaml").read_text().replace("init: checkpoint", "init: scratch"))
    with pytest.raises(ConfigError, match="adapters on random weights learn nothing"):
        load_config(tmp_path / "run.yaml")
    if importlib.util.find_spec("peft"):
        for target in ("no_such", "lm_head", "embed_tokens", "input_layernorm", "self_attn", "proj", "*"):
            lora = Lora(target_modules=("q_proj", target))  # the head was refused at the first step, others never
            words = (
                rf"student.lora.target_modules: '{re.escape(target)}' names none .*: choose of down_proj, gate_proj,"
            )
            with pytest.raises(StudentError, match=words):
                build_student(
                    config.student.model_copy(update={"lora": lora}), None, work_dir=tmp_path, seed=1, max_length=32
                )
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(StudentError, match=r"pip install 'spanwise\[lora\]'"):
        build_student(config.student, None, work_dir=tmp_path, seed=1, max_length=32)
