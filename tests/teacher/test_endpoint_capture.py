"""From a server to a trained step: a cache captured from the endpoint over the demo teacher beside one of the demo teacher itself."""

from __future__ import annotations

import json

import pytest
import torch
from demo_server import TEACHER
from transformers import AutoTokenizer

from distributed.jobs import Job
from kd.data import demo
from kd.data.micro_batch import collate
from kd.data.records import write_records
from kd.data.render import encode
from kd.teacher.cache import CacheReader

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
    """Ten records; the longest is one token too long for the server."""
    out = tmp_path_factory.mktemp("endpoint")
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    records = [demo.record(kind, i, seed=4, short=True) for i, kind in enumerate(("single", "none", "chat", "parallel", "multi") * 2)]
    encoded = sorted((encode(record, tokenizer) for record in records), key=lambda e: len(e.input_ids))
    assert len(encoded[-1].input_ids) > len(encoded[-2].input_ids)
    write_records(out / "records.jsonl", records)
    (out / "run.yaml").write_text(CONFIG.format(out=out, teacher=TEACHER))
    Job(["tests/teacher/endpoint_capture_job.py", str(out), str(len(encoded[-1].input_ids))], 1).wait()
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
    assert ours.kind == "topk" and not endpoint.spec.has_entropy and live.spec.has_entropy and ours.entropy.isnan().all()
    assert endpoint.manifest.identity["entropy"] == "none" and endpoint.manifest.identity["teacher"] == "demo, of an endpoint"
    assert "weights" not in endpoint.manifest.identity


def test_what_was_asked(job):
    """A test of two tokens, then every record once, as the ids it is trained with."""
    _, encoded, found = job
    assert found["prompts"][0] == [0, 1]
    assert sorted(found["prompts"][1:]) == sorted(e.input_ids for e in encoded)
    assert found["problems"] == []


def test_the_record_without_a_signal_is_listed_and_left_out(job):
    out, encoded, found = job
    (missing,) = CacheReader(out / "endpoint").manifest.missing
    assert missing.record_id == encoded[-1].record_id and "the server refuses it: This model's maximum context length is" in missing.reason
    assert found["captured"]["endpoint"]["num_missing"] == 1 and found["captured"]["live"]["num_missing"] == 0


def test_two_steps_of_training(job):
    """From the cache alone; of an entropy nothing is shown, and none of its unknown ones stops a step."""
    _, _, found = job
    lines = found["trained"]["lines"]
    assert len(lines) == 2 and all(line["skipped_steps"] == 0 for line in lines)
    assert all(line["loss"] > 0 and line["kl"] > 0 and line["teacher_agreement"] > 0 and "teacher_entropy" not in line for line in lines)
    assert found["trained"]["result"]["num_no_signal"] <= 1
