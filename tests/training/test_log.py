"""Run log: what is measured survives damage, a full disk, and a TensorBoard that cannot write."""

from __future__ import annotations

import json
import time

import pytest

from kd.training.log import METRICS_FILE, RunLog

LINE = {"stage": "a", "temperature": 1.0, "lr": 1.0, "grad_norm": 1.0, "tokens_per_second": 1.0, "memory_gib": 1.0}
DAMAGE = {
    "bytes": b"\xff\xfe\x00" * 9,
    "text for a step": b'{"step": "a"}',
    "null for a step": b'{"step": null}',
    "an array": b"[1]",
    "5,000 digits": b'{"step": ' + b"1" * 5000 + b"}",
    "deep": b"[" * 100_000,
    "cut off": b'{"step": 1, "st',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_resumed_run_leaves_damaged_lines_out_and_keeps_the_others(tmp_path, damage):
    good = [json.dumps({"step": step}).encode() for step in (1, 2, 3)]
    (tmp_path / METRICS_FILE).write_bytes(b"\n".join([good[0], DAMAGE[damage], *good[1:]]))
    RunLog(tmp_path, 9).resume_at(2)
    assert (tmp_path / METRICS_FILE).read_bytes() == b"\n".join(good[:2]) + b"\n"


def test_a_tensorboard_that_cannot_write_costs_no_line_of_metrics(tmp_path, capfd):
    """Its thread printed a traceback, and metrics.jsonl was never opened."""
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("mine")
    log = RunLog(tmp_path, 3)
    for step in (1, 2, 3):
        log.line({"step": step, "loss": 1.0, **LINE})
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS_FILE).read_text().splitlines()] == [1, 2, 3]
    said = capfd.readouterr()
    assert said.out.count("TensorBoard's curves end here (") == 1
    assert (tmp_path / "tensorboard").read_text() == "mine" and "Traceback" not in said.err


def test_the_thread_of_tensorboard_prints_no_traceback(tmp_path, capfd, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    def fill(writer, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", fill)
    log = RunLog(tmp_path, 3)
    for step in range(1, 4):
        log.line({"step": step, "loss": 1.0, **LINE})
        time.sleep(0.1)  # for its thread
    log.close()
    said = capfd.readouterr()
    assert "Traceback" not in said.err and said.out.count("TensorBoard's curves end here") == 1
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 3
