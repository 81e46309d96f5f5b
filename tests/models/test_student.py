"""The student: sizes, the cut from a teacher's layers, building with and without ZeRO-3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from helpers.tiny_models import SIZES
from kd.config.derived import longest_length
from kd.config.load import load_config
from kd.models.layer_pruning import CutError, evenly_spaced, pool_heads
from kd.models.load import count_parameters, load_causal_lm
from kd.models.model_files import StudentError
from kd.models.student import build_student as build_student_of
from kd.models.student import student_model_config as student_model_config_of

REPOSITORY = Path(__file__).resolve().parents[2]


def student_model_config(config, tokenizer_length=None):
    return student_model_config_of(
        config.student, config.teacher, max_length=longest_length(config.data), tokenizer_length=tokenizer_length
    )


def build_student(config, **options):
    length = longest_length(config.data)
    return build_student_of(config.student, config.teacher, seed=config.run.seed, max_length=length, **options)


@pytest.mark.parametrize(
    ("name", "billions"), [("student_9b_gqa", 9.10), ("student_8b_gqa", 7.82), ("worker_9b", 9.03)]
)
def test_parameters_of_the_three_configurations(name, billions):
    model_config = student_model_config(load_config(REPOSITORY / "configs" / f"{name}.yaml"))
    assert round(count_parameters(model_config) / 1e9, 2) == billions
    assert (model_config.num_attention_heads, model_config.num_key_value_heads, model_config.head_dim) == (32, 8, 128)
    assert model_config.vocab_size == 151_936 and not model_config.tie_word_embeddings


@pytest.fixture(scope="module", params=["qwen3-untied", "qwen3-tied", "llama-untied"])
def teacher(request, tmp_path_factory):
    """A random teacher of 5 layers, saved in several shards."""
    family, tying = request.param.split("-")
    torch.manual_seed(0)
    config_class = {"qwen3": Qwen3Config, "llama": LlamaConfig}[family]
    model = AutoModelForCausalLM.from_config(
        config_class(**SIZES, num_hidden_layers=5, tie_word_embeddings=tying == "tied")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)  # ones would not show a norm that was left behind
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path, max_shard_size="100KB")
    assert (path / "model.safetensors.index.json").exists()
    return path, model.eval()


@pytest.fixture
def configure(tmp_path):
    def configure(student: str, teacher_path=None, max_length: int = 32):
        path = tmp_path / "run.yaml"
        source = f"teacher: {{path: {teacher_path}, dtype: fp32}}" if teacher_path else "tokenizer: {path: unused}"
        path.write_text(
            f"run: {{name: t}}\n{source}\nstudent: {{dtype: fp32, {student}}}\n"
            f"data: {{stages: [{{name: a, train: [x], max_length: {max_length}}}]}}\n"
            "training: {steps: 10, deepspeed: ds_configs/zero3_cpu.json}\n"
        )
        return load_config(path)

    return configure


@torch.no_grad()
def logits(model):
    return model.eval()(torch.arange(24).view(2, 12) * 3).logits


def test_a_cut_of_all_layers_is_the_teacher(teacher, configure, tmp_path):
    path, model = teacher
    student = build_student(configure("init: teacher_layers, num_hidden_layers: 5", path), work_dir=tmp_path)
    assert torch.equal(logits(student), logits(model))


def test_a_cut_equals_the_model_made_by_hand(teacher, configure, tmp_path):
    path, model = teacher
    student = build_student(configure("init: teacher_layers, layers: [0, 3, 4]", path), work_dir=tmp_path)
    by_hand = AutoModelForCausalLM.from_pretrained(path)
    by_hand.model.layers = torch.nn.ModuleList([by_hand.model.layers[i] for i in (0, 3, 4)])
    by_hand.config.num_hidden_layers = 3
    for new, layer in enumerate(by_hand.model.layers):
        layer.self_attn.layer_idx = new
    assert torch.equal(logits(student), logits(by_hand))
    assert not torch.equal(logits(student), logits(model))


def test_key_value_heads_are_averaged_in_groups(teacher, configure, tmp_path):
    path, model = teacher
    student = build_student(
        configure("init: teacher_layers, layers: [0, 4], num_key_value_heads: 2", path), work_dir=tmp_path
    )
    assert student.config.num_key_value_heads == 2
    for new, old in enumerate((0, 4)):
        for name in ("k_proj", "v_proj"):
            theirs = getattr(model.model.layers[old].self_attn, name).weight
            ours = getattr(student.model.layers[new].self_attn, name).weight
            heads = theirs.view(4, 8, 64)
            assert torch.equal(ours.view(2, 8, 64), torch.stack([(heads[0] + heads[1]) / 2, (heads[2] + heads[3]) / 2]))


def test_averaging_equal_heads_changes_nothing(teacher, configure, tmp_path):
    """Which query heads share a key/value head must be the same before and after."""
    path, _ = teacher
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                heads = projection.weight.view(2, 2, 8, 64)
                heads[:, 1] = heads[:, 0]
    model.save_pretrained(tmp_path / "doubled")
    student = build_student(
        configure("init: teacher_layers, num_hidden_layers: 5, num_key_value_heads: 2", tmp_path / "doubled"),
        work_dir=tmp_path,
    )
    torch.testing.assert_close(logits(student), logits(model), rtol=0, atol=1e-5)


def test_vocabulary_width_and_tying_of_a_cut(teacher, configure, tmp_path):
    path, model = teacher
    wide = build_student(
        configure("init: teacher_layers, num_hidden_layers: 5, vocab_size: 128", path), work_dir=tmp_path
    )
    assert torch.equal(logits(wide)[..., :96], logits(model)) and torch.all(logits(wide)[..., 96:] == 0)
    narrow = build_student(
        configure("init: teacher_layers, num_hidden_layers: 5, vocab_size: 80", path), work_dir=tmp_path
    )
    assert torch.equal(logits(narrow), logits(model)[..., :80])
    with pytest.raises(StudentError, match="80 wide and the tokenizer has 96 tokens: set student.vocab_size to 96"):
        student_model_config(configure("init: teacher_layers, num_hidden_layers: 5, vocab_size: 80", path), 96)
    untied = build_student(
        configure("init: teacher_layers, num_hidden_layers: 5, tie_word_embeddings: false", path), work_dir=tmp_path
    )
    assert torch.equal(logits(untied), logits(model))
    assert untied.lm_head.weight.data_ptr() != untied.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("num_hidden_layers: 6", "is 6 and the teacher has 5 layers"),
        ("layers: [0, 5]", "has 5 and the teacher's layers are 0 to 4"),
        (
            "num_hidden_layers: 2, intermediate_size: 256",
            "intermediate_size is 256 and the teacher's is 128: give as much or less, or remove the key",
        ),
        ("num_hidden_layers: 2, hidden_size: 32", "hidden_size is 32 and the teacher's is 64"),
        ("num_hidden_layers: 2, num_attention_heads: 4", "num_attention_heads is 4 and the teacher's is 8"),
        ("num_hidden_layers: 2, num_key_value_heads: 3", "must divide the teacher's 4: use one of 1, 2, 4"),
        ("num_hidden_layers: 2, rope_theta: 5.0", "rope_theta is 5.0 and the teacher's is"),
    ],
)
def test_cuts_that_are_refused(teacher, configure, student, message):
    with pytest.raises(CutError, match=message):
        student_model_config(configure(f"init: teacher_layers, {student}", teacher[0]))


def test_evenly_spaced():
    assert evenly_spaced(7, 3) == [0, 3, 6]
    for total in range(1, 40):
        for kept in range(1, total + 1):
            layers = evenly_spaced(total, kept)
            gaps = [b - a for a, b in zip(layers, layers[1:])]
            assert len(layers) == kept and layers[0] == 0 and (kept == 1 or layers[-1] == total - 1)
            assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def test_heads_are_averaged_in_fp32():
    values = torch.tensor(
        [[256.0], [1.0], [1.0], [1.0]], dtype=torch.bfloat16
    )  # a running bf16 sum would lose the ones
    assert pool_heads(values, 4, 1).item() == torch.tensor(259 / 4, dtype=torch.bfloat16).item()


SCRATCH = (
    "architecture: qwen3, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: "
    "4, num_key_value_heads: 2, vocab_size: 96"
)


def test_from_scratch(configure, tmp_path):
    config = configure(SCRATCH)
    token_ids = {"eos_token_id": 5, "pad_token_id": 0, "bos_token_id": None}
    model = build_student(config, work_dir=tmp_path, token_ids=token_ids)
    assert model.config.eos_token_id == 5 and model.config.max_position_embeddings == 32
    assert abs(model.model.embed_tokens.weight.std().item() - 0.02) < 1e-3
    torch.rand(7)  # the seed of the run decides, not what was drawn before
    again = build_student(config, work_dir=tmp_path, token_ids=token_ids)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_the_vocabulary_comes_from_the_tokenizer_last(configure):
    text = SCRATCH.replace(", vocab_size: 96", "")
    assert student_model_config(configure(text), 77).vocab_size == 77
    with pytest.raises(StudentError, match="set student.vocab_size"):
        student_model_config(configure(text))


def test_from_a_checkpoint(teacher, configure, tmp_path):
    path, model = teacher
    student = build_student(configure(f"init: checkpoint, path: {path}"), work_dir=tmp_path)
    assert torch.equal(logits(student), logits(model))
    with pytest.raises(StudentError, match="64 positions and a stage has max_length 65"):
        student_model_config(configure(f"init: checkpoint, path: {path}", max_length=65))


@pytest.mark.parametrize("student", ["init: checkpoint, path: ./nothing", "init: teacher_layers, num_hidden_layers: 1"])
def test_a_source_that_is_not_there_is_named(configure, student):
    with pytest.raises(StudentError, match=r"(student|teacher).path: './nothing': no such folder is here"):
        student_model_config(configure(student, "./nothing"))


def test_a_checkpoint_without_all_weights_is_refused(teacher, tmp_path):
    from safetensors.torch import load_file, save_file

    _, model = teacher
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        StudentError, match="1 weights are missing or of another shape, first model.layers.3.mlp.up_proj.weight"
    ):
        load_causal_lm(tmp_path, dtype="fp32")


ZERO3 = """
import json, sys
import torch
import deepspeed
from deepspeed.runtime.zero import GatheredParameters
from kd.config.load import load_config
from kd.models.load import load_causal_lm
from kd.models.student import build_student

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # no compiler needed
deepspeed.init_distributed("gloo")
torch.set_num_threads(1)
path, out = sys.argv[1:]
result = {}
settings = json.load(open("ds_configs/zero3_cpu.json"))
settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # every weight is really partitioned
for name in ("cut", "scratch"):
    config = load_config(f"{path}/{name}.yaml")
    # Another model first, in another precision: what it leaves behind must not change the student.
    load_causal_lm(f"{path}/teacher", dtype="bf16", ds_config=settings)
    student = build_student(config.student, config.teacher, seed=config.run.seed, max_length=32, work_dir=path, ds_config=settings)
    with GatheredParameters(list(student.parameters())):
        saved = {key: value.clone() for key, value in student.state_dict().items()}
    engine = deepspeed.initialize(
        model=student,
        model_parameters=student.parameters(),
        optimizer=torch.optim.AdamW(student.parameters(), lr=0.01),
        config={**{k: v for k, v in settings.items() if k != "bf16"}, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1},
    )[0]
    ids = torch.arange(16)[None]
    losses = []
    for _ in range(3):
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    result[name] = losses
    if torch.distributed.get_rank() == 0:
        torch.save(saved, f"{out}/{name}.pt")
try:
    config = load_config(f"{path}/broken.yaml")
    build_student(config.student, config.teacher, seed=1, max_length=32, work_dir=path, ds_config=settings)
except ValueError as error:
    result["broken"] = str(error)
json.dump(result, open(f"{out}/rank{torch.distributed.get_rank()}.json", "w"))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""  # noqa: E501


def test_under_zero3_on_two_ranks(tmp_path, configure):
    """Cut and scratch students are partitioned fp32 models with the weights of the plain build, train with gradient
    checkpointing, and a cut that fails on rank 0 is an error on both ranks, not a hang."""
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(Qwen3Config(**SIZES, num_hidden_layers=4, tie_word_embeddings=True))
    teacher.save_pretrained(tmp_path / "teacher")
    (tmp_path / "broken_teacher").mkdir()
    (tmp_path / "broken_teacher" / "config.json").write_text((tmp_path / "teacher" / "config.json").read_text())
    plain = {}
    for name, student, source in (
        (
            "cut",
            "init: teacher_layers, num_hidden_layers: 2, num_key_value_heads: 2, gradient_checkpointing: true",
            tmp_path / "teacher",
        ),
        ("scratch", SCRATCH, None),
        ("broken", "init: teacher_layers, num_hidden_layers: 2", tmp_path / "broken_teacher"),
    ):
        config = configure(student, source)
        (tmp_path / "run.yaml").rename(tmp_path / f"{name}.yaml")
        if name != "broken":
            plain[name] = build_student(config, work_dir=tmp_path)
    script, out = tmp_path / "zero3.py", tmp_path / "out"
    script.write_text(ZERO3)
    out.mkdir()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
        str(tmp_path),
        str(out),
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    results = [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for name, model in plain.items():
        saved = torch.load(out / f"{name}.pt")
        for key, value in model.state_dict().items():
            assert saved[key].dtype == torch.float32
            if name == "cut":
                assert torch.equal(saved[key], value), key
            else:  # ZeRO-3 draws in another order: the same distribution, not the same numbers
                assert saved[key].shape == value.shape and abs(saved[key].std().item() - value.std().item()) < 2e-3, key
        for result in results:
            assert result[name][2] < result[name][0]
    assert all("no model.safetensors, " in result["broken"] for result in results)
