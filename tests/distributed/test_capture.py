"""Capture writes the same bytes at every world size, whatever stops it, and finds out what is not as its teacher
says.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from helpers.jobs import Job, wait_for_all
from kd.records.files import write_records
from kd.records.record import Record
from kd.sources.demo import corpus as demo
from kd.teacher.cache.reader import CacheReader

CONFIG = """\
run: {{name: t, output_dir: {out}, seed: 3}}
teacher:
  path: {teacher}
  placement: {placement}
  cache: {{path: {out}/cache, kind: sampled, num_draws: 20, temperatures: [1.0, 2.0]}}
student: {{architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, vocab_size: 612, dtype: fp32}}
data:
  stages:
    - {{name: short, train: [{data}], max_length: 250, until: {{steps: 1}}}}
    - {{name: long, train: [{data}], max_length: 600}}
loss: {{temperature: {{start: 2.0}}}}
training: {{steps: 2, micro_batch_size: 3, deepspeed: {out}/ds.json}}
"""  # noqa: E501
DS = {
    "steps_per_print": 10**9,
    "zero_optimization": {"stage": 3, "overlap_comm": False, "stage3_param_persistence_threshold": 0},
}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def written(tmp_path_factory, teacher_folder):
    """write(name, placement): the path of a configuration of its own folder, over the same records."""
    data = tmp_path_factory.mktemp("data") / "records.jsonl"
    made = list(demo.records("train", 24, seed=5, mix={"single": 0.5, "chat": 0.2, "multi": 0.1, "none": 0.2}))
    again = Record(**{**vars(made[0]), "id": "again"})
    write_records(
        data,
        [
            *made,
            again,
            Record("long", [{"role": "user", "content": "x y z " * 600}, {"role": "assistant", "content": "ok"}]),
        ],
    )

    def write(folder: Path, placement: str = "sharded") -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "ds.json").write_text(json.dumps(DS))
        (folder / "run.yaml").write_text(
            CONFIG.format(out=folder, teacher=teacher_folder, data=data, placement=placement)
        )
        return folder / "run.yaml"

    return write


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, written):
    """worlds(world, act): what came of it; worlds.folder(world)."""
    jobs, folders = [], {}
    for world in (1, 2):
        out = folders[world] = tmp_path_factory.mktemp(f"capture{world}")
        other = f"teacher.cache.path={out}/other"
        alone = [f"teacher.cache.path={out}/alone"]
        acts = [
            {"name": "whole", "do": "capture"},
            {"name": "again", "do": "capture"},
            {"name": "good", "do": "verify", "records": 8},
            {"name": "full", "do": "capture", "full": 2500, "overrides": [other]},
            {"name": "stopped", "do": "capture", "stop_after": 3, "overrides": [other]},
            {"name": "resumed", "do": "capture", "overrides": [other]},
            {"name": "one shard", "do": "capture", "shard_rows": 10**9, "overrides": alone},
            {"name": "one shard verified", "do": "verify", "records": 8, "overrides": alone},
            {"name": "reseeded", "do": "capture", "overrides": [other, "run.seed=4"]},
            {"name": "wider", "do": "verify", "records": 8, "overrides": [other, "training.micro_batch_size=2"]},
            {"name": "kept", "do": "copy", "to": f"{out}/kept"},
            {"name": "flip", "do": "flip", "file": "shard-000002.safetensors"},
            {"name": "flipped", "do": "verify", "records": 99},
            {"name": "mended", "do": "capture"},
            {"name": "mended copy", "do": "copy", "to": f"{out}/mended"},
        ]
        if world == 1:
            acts += [{"name": "alter", "do": "alter", "shard": 1}, {"name": "altered", "do": "verify", "records": 99}]
        (out / "job.json").write_text(json.dumps({"config": str(written(out)), "out": str(out), "acts": acts}))
        jobs.append(Job(["tests/distributed/capture_job.py", str(out / "job.json")], world))
    wait_for_all(jobs)
    results = {world: json.loads((out / "results.json").read_text()) for world, out in folders.items()}

    def act(world: int, name: str) -> dict:
        return results[world][name]

    act.folder = folders.__getitem__
    return act


def test_two_ranks_write_what_one_does(worlds):
    one, two = (content(worlds.folder(world) / "kept") for world in (1, 2))
    assert one.keys() == two.keys() and len(one) > 5
    for name in one.keys() - {"manifest.json"}:
        assert one[name] == two[name], name
    manifests = [json.loads(files["manifest.json"]) for files in (one, two)]
    assert manifests[0] == manifests[1]
    result = worlds(2, "whole")["result"]
    assert result["num_published"] == result["num_shards"] == len(one) - 1 and not result["stopped"]


def test_every_record_is_captured_once_and_the_rest_is_counted(worlds):
    said = worlds(1, "whole")["said"]
    reader = CacheReader(worlds.folder(1) / "kept")
    assert sum(shard.records for shard in reader.manifest.shards) == 24
    assert (
        "24 records of" in said[0]
        and "repeat another's tokens" in said[0]
        and "longer than max_length and left out" in said[0]
    )
    assert any("bytes a row" in line for line in said) and any("cache " in line for line in said)


@pytest.mark.parametrize("world", [1, 2])
def test_a_finished_cache_is_verified_and_not_made_again(worlds, world):
    again = worlds(world, "again")
    assert (
        again["counts"] == [[0, 0, 0]] * world
        and again["result"]["num_rows"] == worlds(world, "whole")["result"]["num_rows"]
    )
    assert worlds(world, "good")["result"] == []
    assert worlds(world, "one shard verified")["result"] == []  # whatever its shards' size was
    assert worlds(world, "good")["said"][-1] == "8 records computed again by the teacher: all are equal"


@pytest.mark.parametrize("world", [1, 2])
def test_a_full_disk_and_a_signal_lose_nothing_that_is_published(worlds, world):
    assert (
        "CaptureError" in worlds(world, "full")["error"]
        and "shards that are there are kept" in worlds(world, "full")["error"]
    )
    assert "make room, or change teacher.cache.path" in worlds(world, "full")["error"]
    stopped = worlds(world, "stopped")["result"]
    assert stopped["stopped"] and stopped["num_published"] < stopped["num_shards"]
    assert worlds(world, "stopped")["said"][-1].endswith(
        f"of {stopped['num_shards']} shards are there; the same command goes on from here"
    )
    assert content(worlds.folder(world) / "other") == content(worlds.folder(world) / "kept")
    assert any(line.startswith("going on:") for line in worlds(world, "resumed")["said"])


def test_a_rank_with_nothing_to_do_runs_along(worlds):
    one, two = (content(worlds.folder(world) / "alone") for world in (1, 2))
    assert one == two and len(one) == 2
    assert [asked == empty for _, asked, empty in worlds(2, "one shard")["counts"]] == [False, True]


@pytest.mark.parametrize("world", [1, 2])
def test_another_seed_or_other_neighbours_are_refused_with_both_values(worlds, world):
    assert "seed was '3' and is '4'" in worlds(world, "reseeded")["error"]
    assert (
        "batches was '3 records, 100 rows a shard' and is '2 records, 100 rows a shard'"
        in worlds(world, "wider")["error"]
    )


@pytest.mark.parametrize("world", [1, 2])
def test_a_flipped_bit_is_named_and_that_shard_alone_made_again(worlds, world):
    (problem,) = worlds(world, "flipped")["result"]
    assert "shard-000002.safetensors" in problem
    verdict = "NOT VERIFIED: the same command without --verify writes damaged shards anew"
    assert worlds(world, "flipped")["said"][-1] == verdict
    assert content(worlds.folder(world) / "mended") == content(worlds.folder(world) / "kept")
    assert sum(asked - empty for _, asked, empty in worlds(world, "mended")["counts"]) < len(
        content(worlds.folder(world) / "kept")
    )


def test_a_record_with_other_values_is_named(worlds):
    (problem,) = worlds(1, "altered")["result"]
    assert (
        problem.startswith(f"record {worlds(1, 'alter')['result']}: at temperature 1 1 of ")
        and "entropy by 0.00977" in problem
    )


def start(config: Path, world: int) -> Job:
    """A shard a record, so that there are many moments."""
    return Job(
        ["launch/capture.py", "--config", str(config), "--set", "training.micro_batch_size=1", "--shard-rows", "1"],
        world,
    )


def kill_at(job: Job, folder: Path, shards: int, delay: float) -> bool:
    """SIGKILL to every rank, `delay` seconds after so many shards are there; whether it was still running."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob("shard-*.safetensors"))) < shards and time.monotonic() < deadline and job.running():
        time.sleep(0.002)
    time.sleep(delay)
    running = job.running()
    job.stop()
    return running


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_cache_is_that_of_a_whole_run(tmp_path, written, kills):
    whole, killed = written(tmp_path / "whole", "replicated"), written(tmp_path / "killed", "replicated")
    start(whole, 1).wait()
    expected = content(tmp_path / "whole" / "cache")
    cache, rng, num_killed, shards = tmp_path / "killed" / "cache", random.Random(kills), 0, len(expected) - 1
    while num_killed < kills:
        there = len(list(cache.glob("shard-*.safetensors")))
        # Some at their start, most while shards are written; by one rank or, in the long run of this test, by two in
        # turn.
        at = (
            there
            if num_killed % 5 == 4
            else min(there + rng.randint(0, max(1, 2 * (shards - there) // kills)), shards - 1)
        )
        running = kill_at(start(killed, 1 + num_killed % 2 * (kills > 3)), cache, at, rng.random() * 0.05)
        num_killed += running
        if not running:  # it was done before the kill came: begin again
            assert content(cache) == expected
            shutil.rmtree(cache)
    assert shards == 24
    start(killed, 2).wait()
    assert content(cache) == expected
