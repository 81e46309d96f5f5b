"""A student comes out of a checkpoint without its job, or the reason why not is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kd.checkpoints.store import MANIFEST, CheckpointError
from kd.checkpoints.whole import find_checkpoint, is_checkpoint, load_student, read_student
from kd.config.registries import CHECKPOINT_FORMATS
from kd.evaluation.answerers.answer import Prompt
from kd.evaluation.answerers.opening import Asking, make_ready, settle
from kd.hashing import sha256
from kd.models.student import make_run_student

CONFIG = """\
run: {{name: run, output_dir: {out}}}
tokenizer: {{path: {tokenizer}}}
student: {{architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 4,
          num_key_value_heads: 2, head_dim: 8, tie_word_embeddings: true, dtype: bf16}}
data:
  demo: {{num_records: 8}}
  stages: [{{name: whole, mix: {{single: 1}}, max_length: 512}}]
training: {{steps: 2, micro_batch_size: 2, deepspeed: ds_configs/zero3_cpu.json}}
"""


class Plain:
    """A format of one file, of the names that an engine's module has."""

    def read_weights(self, folder: Path) -> dict[str, torch.Tensor]:
        return torch.load(folder / "weights.pt", weights_only=True)


@pytest.fixture(autouse=True)
def plain():
    CHECKPOINT_FORMATS.register("plain", Plain())
    yield
    CHECKPOINT_FORMATS.unregister("plain")


@pytest.fixture
def run(tmp_path, tokenizer_folder) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(CONFIG.format(out=tmp_path, tokenizer=tokenizer_folder))
    return run


def write(run: Path, step: int, weights: dict[str, torch.Tensor], **manifest) -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    torch.save(weights, folder / "weights.pt")
    files = {"weights.pt": [sha256(folder / "weights.pt"), (folder / "weights.pt").stat().st_size]}
    said = {"version": 2, "format": "plain", "step": step, "world_size": 8, "identity": {}, "files": files}
    (folder / MANIFEST).write_text(json.dumps(said | manifest))
    return folder


@pytest.fixture
def weights(run) -> dict[str, torch.Tensor]:
    saved = read_student(run / "checkpoints" / "step-00000001")
    model = make_run_student(saved.config, saved.tokenizer)
    return {f"model.{name}": value.detach().float() + 1 for name, value in model.named_parameters()}


def test_the_newest_good_checkpoint_of_a_run_is_opened_whatever_wrote_it(run, weights):
    write(run, 4, weights)
    newest = write(run, 8, {name: value * 0 for name, value in weights.items()})
    (newest / "weights.pt").write_bytes(b"torn")
    said: list[str] = []
    place = settle(str(run), said.append)
    assert place == str(run / "checkpoints" / "step-00000004")
    assert len(said) == 2 and "step-00000008 is damaged and left aside: weights.pt has 4 bytes" in said[0]
    ready = make_ready("student", place, Asking(4, None, 8, torch.device("cpu")))
    (answer,) = ready.open().answer([Prompt([{"role": "user", "content": "Hi"}], [])])
    assert answer.num_tokens > 0
    student = load_student(read_student(Path(place)))
    assert student.lm_head.weight is student.model.embed_tokens.weight and student.dtype == torch.bfloat16
    for name, value in student.named_parameters():
        assert torch.equal(value, weights[f"model.{name}"].bfloat16())


def test_what_is_no_checkpoint_is_left_to_others(run, tmp_path):
    assert not is_checkpoint(run) and not is_checkpoint(tmp_path / "absent")
    assert settle("http://127.0.0.1/v1", print) == "http://127.0.0.1/v1" and settle("org/model", print) == "org/model"
    (tmp_path / "model").mkdir()
    for name in (MANIFEST, "config.json"):
        (tmp_path / "model" / name).touch()
    assert not is_checkpoint(tmp_path / "model")


def test_what_cannot_be_read_is_told_with_its_place_and_remedy(run, weights):
    good = write(run, 4, weights)
    odd = write(run, 5, weights, format="theirs")
    with pytest.raises(CheckpointError, match=r"step-00000005 is of version 2 and format theirs, and this program"):
        load_student(read_student(odd))
    name = next(iter(weights))
    other = write(run, 6, weights | {name: torch.zeros(3)})
    with pytest.raises(CheckpointError, match=rf"{name[6:]} is missing or of another shape .* is of another run"):
        load_student(read_student(other))
    other = write(run, 7, weights | {name: weights[name] * torch.nan})
    with pytest.raises(CheckpointError, match=rf"step-00000007: {name[6:]} holds numbers that are not finite"):
        load_student(read_student(other))
    saved = read_student(good)
    good.rename(good.with_name("gone"))
    with pytest.raises(CheckpointError, match="its weights cannot be read .*it has gone: .* give the run's folder"):
        load_student(saved)
    (other / "weights.pt").unlink()
    with pytest.raises(CheckpointError, match="step-00000007: weights.pt is missing: give another"):
        find_checkpoint(other, print)
    (run / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"config.yaml is not there, .* leave the checkpoint in its run's folder"):
        read_student(odd)
