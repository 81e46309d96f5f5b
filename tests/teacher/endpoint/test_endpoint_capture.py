"""From a server to a trained step: a cache captured from the endpoint over the demo teacher beside one of the demo
teacher itself.
"""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

from helpers.demo_server import TEACHER
from helpers.endpoint_server import Server, status
from helpers.jobs import Job
from kd.batching.micro_batch import collate
from kd.records.files import write_records
from kd.rendering.encode import encode
from kd.sources.demo import corpus as demo
from kd.teacher.cache.reader import CacheReader

CONFIG = """\
run: {{name: t, output_dir: {out}}}
teacher: {{path: {teacher}, dtype: fp32, placement: replicated, cache: {{path: none, kind: topk}}}}
student: {{init: teacher_layers, layers: [0, 5], dtype: fp32}}
data: {{stages: [{{name: a, train: [{out}/records.jsonl], max_length: 1024}}]}}
loss: {{temperature: {{start: 1.0}}}}
training: {{steps: 2, log_every: 1, micro_batch_size: 2, deepspeed: ds_configs/zero3_cpu.json}}
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Ten records; the longest is one token too long for the server, and the next for a smaller one."""
    out = tmp_path_factory.mktemp("endpoint")
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    records = [
        demo.record(kind, i, seed=4, short=True)
        for i, kind in enumerate(("single", "none", "chat", "parallel", "multi") * 2)
    ]
    encoded = sorted((encode(record, tokenizer) for record in records), key=lambda e: len(e.input_ids))
    assert len(encoded[-1].input_ids) > len(encoded[-2].input_ids) > len(encoded[-3].input_ids)
    write_records(out / "records.jsonl", records)
    (out / "run.yaml").write_text(CONFIG.format(out=out, teacher=TEACHER))
    Job(
        ["tests/teacher/endpoint/endpoint_capture_job.py", str(out), *(str(len(e.input_ids)) for e in encoded[:-3:-1])],
        1,
    ).wait()
    return out, encoded, json.loads((out / "result.json").read_text())


def test_the_cache_of_an_endpoint(job):
    out, encoded, found = job
    micro = collate(encoded[:-1], 0)
    num_rows = torch.bincount(micro.record).tolist()
    live, endpoint = (CacheReader(out / name) for name in ("live", "endpoint"))
    ours, theirs = (reader.read(micro.keys, micro.row_digests, num_rows, 1.0) for reader in (endpoint, live))
    same = ours.ids == theirs.ids
    assert same.float().mean() > 0.99 and torch.equal(ours.argmax, theirs.argmax)
    likely = same & (theirs.probs > 1e-6)
    assert (ours.probs.log() - theirs.probs.log())[likely].abs().max() < 1e-3
    assert (ours.log_tail.exp() - theirs.log_tail.exp()).abs().max() < 1e-5
    assert (
        ours.kind == "topk" and not endpoint.spec.has_entropy and live.spec.has_entropy and ours.entropy.isnan().all()
    )
    assert (
        endpoint.manifest.identity["entropy"] == "none"
        and endpoint.manifest.identity["teacher"] == "demo, of an endpoint"
    )
    assert "weights" not in endpoint.manifest.identity


def test_what_was_asked(job):
    """The opening's three, then every record once, as the ids it is trained with."""
    _, encoded, found = job
    assert found["prompts"][:3] == [[0, 1, 2, 3, 4, 5]] * 2 + [[0, 1, 2, 4, 4, 5]]
    assert sorted(found["prompts"][3:]) == sorted(e.input_ids for e in encoded)
    assert found["problems"] == []


def test_the_record_without_a_signal_is_listed_and_left_out(job):
    out, encoded, found = job
    (missing,) = CacheReader(out / "endpoint").manifest.missing
    assert (
        missing.record_id == encoded[-1].record_id
        and "the server refuses it: This model's maximum context length is" in missing.reason
    )
    assert found["captured"]["endpoint"]["num_missing"] == 1 and found["captured"]["live"]["num_missing"] == 0


def test_what_is_missing_is_asked_for_again_and_nothing_lost_by_it(job):
    """A server that answers less than before changes nothing; one that answers all makes what it would have made at
    once.
    """
    out, encoded, found = job
    first, strict, worse, better, done, whole = found["retries"]
    assert first["num_missing"] == 1
    assert (
        "1 of 10 records have no targets, more than teacher.endpoint.max_missing (0.05) allows" in strict["error"]
        and strict["prompts"] == []
    )
    assert (
        "kept as it was: 1 records that it has got no targets this time" in worse["error"]
        and worse["bytes"] == first["bytes"]
    )
    assert better["num_missing"] == 0 and better["bytes"] == whole["bytes"] != first["bytes"]
    assert done["prompts"] == [] and done["num_missing"] == 0  # nothing is missing: no server is asked
    assert CacheReader(out / "retried").manifest == CacheReader(out / "whole").manifest


def test_two_steps_of_training(job):
    """From the cache alone; of an entropy nothing is shown, and none of its unknown ones stops a step."""
    _, _, found = job
    lines = found["trained"]["lines"]
    assert len(lines) == 2 and all(line["skipped_steps"] == 0 for line in lines)
    assert all(
        line["loss"] > 0 and line["kd"] > 0 and line["teacher_agreement"] > 0 and "teacher_entropy" not in line
        for line in lines
    )
    assert found["trained"]["result"]["num_no_signal"] <= 1


@pytest.mark.slow
def test_two_ranks_a_server_that_dies_and_the_same_command_again(tmp_path, teacher_folder, tokenizer):
    """Both ranks stop with the reason, no record is given up, and what is then made is what one rank makes of a server
    that is well.
    """
    table = torch.randn(len(tokenizer), len(tokenizer), generator=torch.Generator().manual_seed(2)) * 2
    answered = [0, 10**9]  # so far, and the most of them

    def dying(number, request):
        answered[0] += 1
        return status(503) if answered[0] > answered[1] else None

    write_records(
        tmp_path / "records.jsonl",
        [demo.record(kind, i, seed=5, short=True) for i in range(6) for kind in ("single", "none", "chat")],
    )
    with Server(lambda ids: table[torch.tensor(ids)], faults=dying, decode=lambda i: tokenizer.decode([i])) as server:
        (tmp_path / "run.yaml").write_text(CONFIG.format(out=tmp_path, teacher=teacher_folder))

        def captured(name: str, world: int, expect: int = 0) -> str:
            endpoint = f"teacher.endpoint={{url: {server.url}, model: demo, concurrency: 2, retries: 1}}"
            command = ["launch/capture.py", "--config", str(tmp_path / "run.yaml"), "--shard-rows", "60"]
            return "\n".join(
                Job([*command, "--set", f"teacher.cache.path={tmp_path / name}", "--set", endpoint], world).wait(
                    expect=expect
                )
            )

        captured("well", 1)
        well, total = CacheReader(tmp_path / "well").manifest, answered[0]
        assert len(well.shards) > 3 and well.missing == []
        answered[:] = [0, total // 2]
        said = captured("ill", 2, expect=1)
        assert (
            said.count("answers no more. Record ") == 2
            and "what was captured is kept" in said
            and "Traceback" not in said
        )
        published = {path.name: path.read_bytes() for path in (tmp_path / "ill").glob("*.safetensors")}
        answered[:] = [0, 10**9]
        captured("ill", 2)
    assert answered[0] < total + 2  # not all were asked for again
    assert CacheReader(tmp_path / "ill").manifest == well
    for shard in well.shards:
        raw = (tmp_path / "ill" / shard.name).read_bytes()
        assert raw == (tmp_path / "well" / shard.name).read_bytes() == published.get(shard.name, raw)
