"""A killed run goes on from its newest good checkpoint and ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kd.checkpoints.store import find_damage, list_checkpoints
from kd.checkpoints.whole import find_checkpoint, load_student, read_student
from kd.sources.demo import corpus as demo

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
run: {{name: {name}, output_dir: {out}}}
tokenizer: {{path: {out}/tokenizer}}
student: {{architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
          num_key_value_heads: 2, tie_word_embeddings: true, dtype: bf16}}
data:
  demo: {{num_records: 200}}
  {data}
  stages:
    - {{name: first, mix: {{echo: 1}}, max_length: 600, until: {{steps: 7}}}}
    - {{name: second, mix: {{single: 1, none: 1}}, max_length: 600}}
optimizer: {{lr: 3e-3, warmup_steps: 2}}
training: {{steps: 24, micro_batch_size: 2, log_every: 5, save_every: 4, deepspeed: ds_configs/zero3_cpu.json}}
"""


def start(out: Path, name: str, ranks: int, *arguments: str, data: str = "packing: none") -> list[subprocess.Popen]:
    path = out / f"{name}.yaml"
    path.write_text(CONFIG.format(name=name, out=out, data=data))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    common |= {
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with (out / f"{name}.log").open("w") as log:
        return [
            subprocess.Popen(
                [sys.executable, "launch/train.py", "--config", str(path), *arguments],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(ranks)
        ]


def finish(out: Path, name: str, ranks: int, *arguments: str, code: int = 0, **options) -> str:
    processes = start(out, name, ranks, *arguments, **options)
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = (out / f"{name}.log").read_text()
    assert codes == [code] * ranks, said[-4000:]
    return said


def kill_after_two_checkpoints(processes: list[subprocess.Popen], checkpoints: Path) -> None:
    deadline = time.monotonic() + 180
    while len(list_checkpoints(checkpoints)) < 2 and time.monotonic() < deadline and processes[0].poll() is None:
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.wait()


def numbers(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = ("seconds", "tokens_per_second", "data_wait", "rank_wait", "teacher_wait", "memory_gib")
    return [{k: v for k, v in row.items() if k not in measured} for row in rows]


@pytest.mark.parametrize(
    ("ranks", "data"),
    [
        (2, "packing: none"),
        pytest.param(1, "packing: none", marks=pytest.mark.slow),
        pytest.param(2, "packing: length\n  too_long: truncate\n  workers: 1", marks=pytest.mark.slow),
    ],
)
def test_killed_and_damaged_it_ends_with_the_same_bits(tmp_path, ranks, data):
    demo.build_tokenizer(tmp_path / "tokenizer", vocab_size=420, num_records=200)
    finish(tmp_path, "whole", ranks, data=data)

    killed = tmp_path / "killed"
    kill_after_two_checkpoints(start(tmp_path, "killed", ranks, data=data), killed / "checkpoints")
    assert not (killed / "run.json").exists(), "it finished before it was killed"
    newest, older = list_checkpoints(killed / "checkpoints")[:2]
    file = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert file.name in find_damage(newest) and find_damage(older) is None

    said = finish(tmp_path, "killed", ranks, data=data)
    assert f"{newest} is damaged and left aside" in said
    assert f"going on from the checkpoint of step {int(older.name.removeprefix('step-'))}" in said
    for name in ("model.safetensors", "config.json"):
        assert (killed / "student" / name).read_bytes() == (tmp_path / "whole" / "student" / name).read_bytes()
    assert numbers(killed) == numbers(tmp_path / "whole")

    # One process reads the student out of what both ranks wrote; it is the one that was exported.
    last = find_checkpoint(tmp_path / "whole", say=lambda text: None)
    student, exported = load_student(read_student(last)), load_file(tmp_path / "whole" / "student/model.safetensors")
    assert last.name == "step-00000024" and student.config.eos_token_id is not None
    parameters = dict(student.named_parameters())
    assert parameters.keys() == exported.keys() and all(
        torch.equal(parameters[name], exported[name]) for name in exported
    )
    assert [row["step"] for row in numbers(killed)] == [5, 10, 15, 20, 24]

    # Another configuration is refused on every rank, and nothing is silently begun again.
    (killed / "run.json").unlink()
    said = finish(tmp_path, "killed", ranks, "--set", "optimizer.lr=1e-3", code=1, data=data)
    assert "optimizer.lr was 0.003 and is 0.001" in said and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_killed_at_one_number_of_ranks_it_goes_on_at_another(tmp_path, first, then):
    """The same records a step, so that losses differ by rounding alone."""
    split = {
        ranks: ("--set", "student.dtype=fp32", "--set", f"training.gradient_accumulation={2 // ranks}")
        for ranks in (1, 2)
    }
    demo.build_tokenizer(tmp_path / "tokenizer", vocab_size=420, num_records=200)
    finish(tmp_path, "whole", first, *split[first])
    kill_after_two_checkpoints(start(tmp_path, "killed", first, *split[first]), tmp_path / "killed/checkpoints")
    said = finish(tmp_path, "killed", then, *split[then])
    assert f"the checkpoint was written by {first} ranks and is resumed by {then}" in said
    assert "a step took" not in said
    resumed, whole = numbers(tmp_path / "killed"), numbers(tmp_path / "whole")
    assert [row["step"] for row in resumed] == [row["step"] for row in whole]
    for one, other in zip(resumed, whole):
        for name in ("loss", "truth", "grad_norm", "truth_accuracy", "sequences"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), (one["step"], name)


ROLLOUTS = (
    "data.stages.1.rollouts={share: 0.5, samples: 2, repair: 1, reward: 1, max_new_tokens: 24, sync_every: 3, "
    "guards: {unfinished: null}, rewards: {json_valid: 1, refrains: 1}}"
)


def check_equal_with_answers(killed: Path, whole: Path) -> None:
    """Check that two runs with rollouts ended with the same bits."""
    for name in ("student/model.safetensors", "rollouts.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    apart = ("sampling_seconds", "sampled_tokens_per_second")
    rows = [[{k: v for k, v in row.items() if k not in apart} for row in numbers(folder)] for folder in (killed, whole)]
    assert rows[0] == rows[1] and any("repair" in row for row in rows[0])


@pytest.mark.slow
def test_killed_between_two_rounds_or_inside_one_the_answers_are_the_same(tmp_path):
    """Rounds of three steps, checkpoints every four: what was sampled and not yet trained is not sampled again."""
    demo.build_tokenizer(tmp_path / "tokenizer", vocab_size=420, num_records=200)
    given = ("--set", ROLLOUTS)
    finish(tmp_path, "whole", 2, *given)
    killed = tmp_path / "killed"
    kill_after_two_checkpoints(start(tmp_path, "killed", 2, *given), killed / "checkpoints")
    assert not (killed / "run.json").exists(), "it finished before it was killed"
    finish(tmp_path, "killed", 2, *given)
    check_equal_with_answers(killed, tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_answers_are_the_same(tmp_path):
    """Each start gets up to a fifth of the run's time before it is killed, and a checkpoint is written every step."""
    demo.build_tokenizer(tmp_path / "tokenizer", vocab_size=420, num_records=200)
    given = ("--set", ROLLOUTS, "--set", "training.save_every=1")
    finish(tmp_path, "whole", 2, *given)
    whole, killed, chance = tmp_path / "whole", tmp_path / "killed", random.Random(18)
    seconds = json.loads((whole / "run.json").read_text())["training_seconds"]
    reached = []
    for _ in range(10):
        processes = start(tmp_path, "killed", 2, *given)
        deadline = time.monotonic() + 180
        while "kill -USR1" not in (tmp_path / "killed.log").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, seconds / 5))
        assert processes[0].poll() is None, (tmp_path / "killed.log").read_text()[-4000:]
        for process in processes:
            process.kill()
            process.wait()
        reached += [int(one.name.removeprefix("step-")) for one in list_checkpoints(killed / "checkpoints")[:1]]
    assert len(set(reached)) >= 3, "the kills did not fall into the training"
    finish(tmp_path, "killed", 2, *given)
    check_equal_with_answers(killed, whole)


def test_every_damage_is_named(tmp_path):
    from kd.checkpoints.store import MANIFEST
    from kd.hashing import sha256

    folder = tmp_path / "step-00000004"
    (folder / "state").mkdir(parents=True)
    shard = folder / "state" / "shard.pt"
    shard.write_bytes(b"weights" * 1000)
    manifest = {"step": 4, "world_size": 1, "identity": {}, "files": {"state/shard.pt": [sha256(shard), 7000]}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert find_damage(folder) is None
    shard.write_bytes(b"weights" * 999)
    assert find_damage(folder) == "state/shard.pt has 6993 bytes, not 7000"
    shard.write_bytes(b"weighty" * 1000)
    assert "state/shard.pt does not have the hash" in find_damage(folder)
    shard.unlink()
    assert find_damage(folder) == "state/shard.pt is missing"
    (folder / MANIFEST).write_text("{")
    assert MANIFEST in find_damage(folder)
