"""A killed run goes on with the cache that it was trained from, and with no other at its path."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import safetensors.torch

from helpers.jobs import Job
from kd.checkpoints.store import list_checkpoints

CONFIG = """\
run: {{name: r, output_dir: {out}}}
teacher: {{path: {out}/teacher, dtype: fp32, placement: replicated, cache: {{path: {out}/cache, kind: sampled, num_draws: 20}}}}
student: {{architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 4, vocab_size: 612, dtype: fp32}}
data: {{demo: {{num_records: 12}}, stages: [{{name: a, mix: {{echo: 1}}, max_length: 512}}]}}
loss: {{temperature: {{start: 1.0}}}}
training: {{steps: 400, save_every: 2, micro_batch_size: 2, deepspeed: ds_configs/zero3_cpu.json}}
"""  # noqa: E501


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_cache_alone(tmp_path, teacher_folder):
    (tmp_path / "run.yaml").write_text(CONFIG.format(out=tmp_path))
    shutil.copytree(teacher_folder, tmp_path / "teacher")

    def command(name: str, *overrides: str) -> Job:
        return Job(
            [
                f"launch/{name}.py",
                "--config",
                str(tmp_path / "run.yaml"),
                *(word for text in overrides for word in ("--set", text)),
            ],
            1,
        )

    def killed_at(step: int, *overrides: str) -> None:
        job = command("train", *overrides)
        deadline = time.monotonic() + 180
        while (
            job.running()
            and time.monotonic() < deadline
            and not any(int(path.name[5:]) >= step for path in list_checkpoints(tmp_path / "r" / "checkpoints"))
        ):
            time.sleep(0.01)
        assert job.running(), job.wait(expect=0)
        job.stop()

    command("capture").wait()
    killed_at(2)
    weights = next(Path(tmp_path / "teacher").glob("*.safetensors"))
    tensors, old = safetensors.torch.load_file(weights), weights.read_bytes()
    safetensors.torch.save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, weights, {"format": "pt"})
    (tmp_path / "cache").rename(tmp_path / "kept")
    command("capture").wait()
    (said,) = command("train").wait(expect=1)
    assert "it was trained from another teacher.cache (it was captured again: " in said and "Traceback" not in said

    weights.write_bytes(old)
    killed_at(12, f"teacher.cache.path={tmp_path / 'kept'}")
    assert int(list_checkpoints(tmp_path / "r" / "checkpoints")[0].name[5:]) >= 12
