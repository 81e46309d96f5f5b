"""Files of a checkpoint that this program did not write, and whose hashes are right all the same, are each named."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from kd.checkpoints.partitions import FORMAT
from kd.checkpoints.store import CheckpointError, Checkpoints, find_resumable
from kd.training.progress import Progress
from kd.training.trainer import Trainer, TrainingError

WEIGHT = {"shape": [2, 3], "start": 0, "numel": 6, "kinds": ["master"], "numbers": {"step": 1.0}}
STATE = {"run": {"\0dict": []}, "counters": dict.fromkeys(("global_steps", "global_samples", "skipped_steps"), 1)}
STATE["loss_scale"] = {}
WHOLE, SAYS = json.dumps({"w": WEIGHT}), json.dumps(STATE)
PARTS, RANK = "partitions-00000-0000.safetensors", "state-00000.safetensors"
ABOUT = {
    "[]": "Input should be an object",
    "{": "Invalid JSON",
    "[" * 100_000: "Invalid JSON",
    None: "is no file that this program wrote",
    json.dumps({"w": WEIGHT | {"start": "0"}}): "w.start: Input should be a valid integer",
    json.dumps({"w": WEIGHT | {"start": -1}}): "w.start: Input should be greater",
    json.dumps({"w": WEIGHT | {"shape": 5}}): "w.shape: Input should be a valid",
    json.dumps({"w": WEIGHT | {"kinds": []}}): "w has no master",
    json.dumps({"w": WEIGHT | {"kinds": ["master", "momentum"]}}): "momentum",
    json.dumps({"w": WEIGHT | {"numbers": {"step": "x"}}}): "w.numbers.step: Input should be a valid number",
    json.dumps({"w": WEIGHT | {"numel": 5}}): r"w/master is F32 \[6\], not 5 numbers",
    json.dumps({"w": {"shape": [2, 3]}}): "w.start: Field required",
    json.dumps({"w": WEIGHT | {"numbers": {"step": float("nan")}}}): "w.numbers.step: Input should be a finite number",
}
SAID = {
    "[]": "Input should be",
    "{": "Invalid JSON",
    None: "is no file that this program wrote",
    json.dumps(STATE | {"run": 5}): "its state is no mapping",
    json.dumps(STATE | {"run": {"\0dict": 5}}): "is no file that this program wrote",
    json.dumps(STATE | {"run": {"\0tensor": "state/0"}}): "is no file that this program wrote .KeyError",
    json.dumps(STATE | {"counters": {}}): "counters.global_s.* is missing",
    json.dumps(STATE | {"counters": {"global_steps": "x"}}): "counters.global_steps: Input should be a valid integer",
    json.dumps({"counters": {}}): "run: Field required",
    json.dumps(STATE | {"loss_scale": {"cur_scale": 0}}): "loss_scale.cur_scale is 0, and not above 0",
    json.dumps(STATE | {"loss_scale": {"cur_scale": -2.0}}): "loss_scale.cur_scale is -2.0, and not above 0",
    json.dumps(STATE | {"loss_scale": {"cur_scale": float("inf")}}): "loss_scale.cur_scale.*: Input should be a",
}


class Alone:
    rank, world_size = 0, 1

    def gather(self, value):
        return [value]


class Engine:
    """An engine without a weight, which loads a state alone."""

    optimizer, module = SimpleNamespace(loss_scaler=None), torch.nn.Module()

    def save(self, folder, state, written_as):
        write(folder)

    def load(self, folder, written_as):
        return written_as.load(self, folder)


def write(folder, about=WHOLE, said=SAYS, weight=None) -> None:
    weight = torch.zeros(6) if weight is None else weight
    save_file({"w/master": weight}, folder / PARTS, None if about is None else {"partitions": about})
    save_file({"": torch.zeros(0)}, folder / RANK, None if said is None else {"state": said})


@pytest.mark.parametrize("about", ABOUT)
def test_partitions_that_say_what_they_do_not_hold(tmp_path, about):
    write(tmp_path, about)
    with pytest.raises(ValueError, match=f"{PARTS}.*{ABOUT[about]}"):
        FORMAT.read_weights(tmp_path)


@pytest.mark.parametrize("weight", [torch.zeros(6).long(), torch.zeros(6).to(torch.complex64), torch.zeros(1, 6)])
def test_weights_that_are_no_slice_of_numbers(tmp_path, weight):
    write(tmp_path, weight=weight)
    with pytest.raises(ValueError, match=f"{PARTS}.*w/master is "):
        FORMAT.read_weights(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(tmp_path, value):
    """They were resumed, and every step after was skipped."""
    write(tmp_path, weight=torch.tensor([0, 1, 2, value, 4, 5]))
    with pytest.raises(ValueError, match=f"{PARTS}: w/master holds numbers that are not finite"):
        FORMAT.read_weights(tmp_path)


@pytest.mark.parametrize("content", [b"", b"text in its place"])
def test_what_is_no_safetensors_file(tmp_path, content):
    write(tmp_path)
    (tmp_path / PARTS).write_bytes(content)
    with pytest.raises(ValueError, match=f"{PARTS} is no file that this program wrote"):
        FORMAT.read_weights(tmp_path)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("said", SAID)
def test_states_of_others(tmp_path, said):
    write(tmp_path, said=said)
    with pytest.raises(ValueError, match=f"{RANK}.*{SAID[said]}"):
        FORMAT.load(Engine(), tmp_path)


@pytest.mark.usefixtures("one_rank")
def test_what_cannot_be_loaded_is_told_with_a_remedy(tmp_path):
    saver = Checkpoints(tmp_path, Engine(), Alone(), {})
    saver.save(2, {})
    found = find_resumable(tmp_path, {}, 1, pytest.fail)
    assert Checkpoints(tmp_path, Engine(), Alone(), {}, resume=found).load() == {}
    (tmp_path / "step-00000002" / RANK).unlink()
    with pytest.raises(CheckpointError, match="it has no state-NNNNN.safetensors.*: move it away to go on from the"):
        Checkpoints(tmp_path, Engine(), Alone(), {}, resume=found).load()


@pytest.mark.parametrize("change", [{"random_state": None}, {"window": {"x": 1}}, {"tally": 5}, {"step": 1, "more": 2}])
def test_a_state_that_is_none_of_a_training_is_told(change):
    trainer = object.__new__(Trainer)
    state = Progress().state_dict() | change
    trainer._checkpoints, trainer._ranks = SimpleNamespace(load=lambda: state), Alone()
    with pytest.raises(TrainingError, match="state is none of a training.*give --fresh to begin again"):
        trainer._resume()
