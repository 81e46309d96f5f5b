"""A checkpoint of one number of ranks is resumed by another: the same masters and moments, and the same losses."""

from __future__ import annotations

import json
import random
from pathlib import Path

import deepspeed
import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from transformers import LlamaConfig

from helpers.forked import run_ranks
from helpers.tiny_models import SIZES
from kd.checkpoints.partitions import FORMAT
from kd.checkpoints.plain_state import RANKS
from kd.checkpoints.store import MANIFEST, CheckpointError, Checkpoints, find_damage, find_resumable
from kd.checkpoints.zero_partitions import MASTER
from kd.config.schema import Optimizer
from kd.distributed.ranks import Ranks
from kd.models.load import load_causal_lm
from kd.training.optimizer import build_optimizer

FEW = [("fp32", True, 2), ("bf16", True, 3)]
ALL = [(dtype, tied, stage) for dtype in ("fp32", "bf16") for tied in (True, False) for stage in (3, 2)]
STEPS, ROWS = 2, 6
WORLDS = (2, 1, 3)  # each loads what the one before it saved after its steps


class Alone(torch.nn.Module):
    """A model and its loss, as StudentWithLoss has the model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def make_engine(dtype: str, tied: bool, stage: int):
    zero = {"stage": stage, "overlap_comm": False, "reduce_bucket_size": 10**6}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0 if tied else 2000, "sub_group_size": 20_000}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": dtype == "bf16"},
        "zero_optimization": zero,
        "steps_per_print": 10**9,
    }
    torch.manual_seed(5)
    sizes = LlamaConfig(**SIZES, num_hidden_layers=2, tie_word_embeddings=tied)
    model = load_causal_lm(None, sizes, dtype=dtype, ds_config=config)
    module = Alone(model)
    optimizer = build_optimizer(model, Optimizer(lr=1e-3), config)
    return deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]


def train(engine, first: int) -> list[float]:
    """Take STEPS steps; the batches of a step are the same at every number of ranks."""
    losses, world = [], dist.get_world_size()
    for step in range(first, first + STEPS):
        ids = torch.randint(96, (ROWS, 9), generator=torch.Generator().manual_seed(step))
        loss = engine(ids[dist.get_rank() :: world]) / (ROWS * 8)
        engine.backward(loss * world)
        engine.step()
        whole = loss.detach().clone()
        dist.all_reduce(whole)
        losses.append(float(whole))
    return losses


def whole_state(engine) -> dict[str, torch.Tensor]:
    """Masters, moments and weights, gathered by DeepSpeed's own functions."""
    found = {}
    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):  # stage 2 links when its first group alone has stepped
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in engine.module.named_parameters():
        found[f"{name}/{MASTER}"] = safe_get_full_fp32_param(parameter).clone()
        for key in ("exp_avg", "exp_avg_sq"):
            found[f"{name}/{key}"] = safe_get_full_optimizer_state(parameter, key).clone()
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            found[name] = parameter.detach().clone()
    return found


def _run(cases, worlds, place: int, out: Path) -> None:
    for case in cases:
        name = "-".join(map(str, case))
        engine, first, equal = make_engine(*case), place * STEPS, []
        if place:
            state = FORMAT.load(engine, out / f"{name}.{place - 1}")
            was = torch.load(out / f"{name}.{place - 1}.pt", weights_only=False)
            # The optimizer's state is linked to its weights at the first step; look at it before and after one.
            equal = [whole for whole, value in was["state"].items() if torch.equal(value, look(engine, whole))]
            assert sorted(equal) == sorted(was["state"]), set(was["state"]) - set(equal)
            assert state["step"] == first and engine.global_steps == first
            assert len(state[RANKS]) == worlds[place - 1]
        losses = train(engine, first)
        found = whole_state(engine)
        if dist.get_rank() == 0:
            (out / f"{name}.{place}").mkdir()
            torch.save({"state": found, "losses": losses}, out / f"{name}.{place}.pt")
        dist.barrier()
        FORMAT.save(engine, out / f"{name}.{place}", {"step": first + STEPS, "rank": dist.get_rank()})
        dist.barrier()
        whole = FORMAT.read_weights(out / f"{name}.{place}")  # by one process, with no engine
        assert all(torch.equal(whole[key], found[f"{key}/{MASTER}"]) for key in whole) and len(whole) * 4 == len(found)
        dist.barrier()
        if place == 0:  # undisturbed, for as long as all the others together
            rest = [train(engine, STEPS * number) for number in range(1, len(worlds))]
            torch.save(rest, out / f"{name}.undisturbed.pt")
        engine.destroy()


def look(engine, name: str) -> torch.Tensor:
    """One tensor of `whole_state` of an engine that has loaded and not stepped: from its partitions on all ranks."""
    from kd.checkpoints.zero_partitions import flat_state, list_partitions

    name, _, kind = name.partition("/")
    parameter = dict(engine.module.named_parameters())[name]
    shape = getattr(parameter, "ds_shape", parameter.shape)
    if not kind:
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            return parameter.detach().clone()
    if kind == MASTER:
        return safe_get_full_fp32_param(parameter)
    whole = torch.zeros(shape.numel())
    for part in list_partitions(engine):
        if part.name == name:
            whole[part.start : part.start + part.numel] = part.view(flat_state(engine, part.flat)[0][kind])
    dist.all_reduce(whole)
    return whole.view(shape)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("worlds")
    go_through(FEW, WORLDS, out)
    return out


def go_through(cases, worlds, out: Path) -> None:
    for place, world in enumerate(worlds):
        run_ranks(world, lambda place=place: _run(cases, worlds, place, out), out / "log")


def test_any_number_of_ranks_goes_on_with_the_same_bits(worlds):
    compare_losses(FEW, WORLDS, worlds)


@pytest.mark.slow
def test_of_every_precision_stage_and_head_the_bits_are_the_same(tmp_path):
    go_through(ALL, (2, 1, 2, 3, 1), tmp_path)
    compare_losses(ALL, (2, 1, 2, 3, 1), tmp_path)


def compare_losses(cases, numbers, worlds: Path) -> None:
    for case in cases:
        name = "-".join(map(str, case))
        undisturbed = torch.load(worlds / f"{name}.undisturbed.pt")
        for place in range(1, len(numbers)):
            losses = torch.load(worlds / f"{name}.{place}.pt", weights_only=False)["losses"]
            torch.testing.assert_close(
                torch.tensor(losses),
                torch.tensor(undisturbed[place - 1]),
                rtol=2e-6 if case[0] == "fp32" else 2e-3,
                atol=0,
                msg=lambda text, name=name, place=place: f"{name} at {numbers[place]} ranks: {text}",
            )


class Written:
    """An engine that writes files made before."""

    def __init__(self, folder: Path):
        self._folder = folder

    def save(self, folder, state, written_as):
        for file in self._folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())


@pytest.mark.usefixtures("one_rank")
def test_200_flipped_bits_are_each_found_and_their_file_named(worlds, tmp_path):
    Checkpoints(tmp_path, Written(worlds / "bf16-True-3.0"), Ranks(), {"training.steps": 4}).save(2, {})
    folder = tmp_path / "step-00000002"
    assert find_damage(folder) is None
    chosen = random.Random(3)
    files = sorted(folder.iterdir())
    for number in range(200):
        file = files[number % len(files)]
        content = bytearray(file.read_bytes())
        place = chosen.randrange(len(content))
        content[place] ^= 1 << chosen.randrange(8)
        kept = file.read_bytes()
        file.write_bytes(content)
        damage = find_damage(folder)
        assert damage is not None and damage.startswith(file.name), (file.name, place, damage)
        file.write_bytes(kept)
    assert find_damage(folder) is None


@pytest.mark.usefixtures("one_rank")
def test_the_older_format_is_resumed_by_as_many_and_tells_others_how_to_convert(worlds, tmp_path):
    Checkpoints(tmp_path, Written(worlds / "fp32-True-2.0"), Ranks(), {"training.steps": 4}).save(2, {})
    assert find_resumable(tmp_path, {"training.steps": 4}, 1, pytest.fail).other_ranks is None
    found = find_resumable(tmp_path, {"training.steps": 4, "training.gradient_accumulation": 2}, 4, pytest.fail)
    assert found is not None and found.other_ranks == (
        "the checkpoint was written by 1 ranks and is resumed by 4: a step took 1 rows and takes 8 from here on "
        "(training.micro_batch_size x training.gradient_accumulation x ranks)"
    )
    file = tmp_path / "step-00000002" / MANIFEST
    manifest = json.loads(file.read_text()) | {"version": 2, "format": "deepspeed"}
    del manifest["sha256"]  # as version 2 wrote it
    file.write_text(json.dumps(manifest))
    assert find_resumable(tmp_path, {"training.steps": 4}, 1, pytest.fail) is not None
    with pytest.raises(CheckpointError, match="start it once with 1 and training.checkpoint_format: partitions"):
        find_resumable(tmp_path, {"training.steps": 4}, 2, pytest.fail)
