"""The table of a run on GPUs that are not here: by hand, printed for the configurations, as a page and as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kd.config.load import load_config
from kd.preflight.plan import find_job
from kd.preflight.rental.table import Rates, make_table, step_seconds
from launch.plan import main

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FLAT = Rates(peak_flops=1e15, mfu=0.5, within_host=1e12, across_hosts=1e10, pcie=1e10, host_memory=1e11)


@pytest.fixture(scope="module")
def job():
    return find_job(load_config(CONFIGS / "student_9b_gqa.yaml"), 8)[0]


def test_a_step_by_hand(job):
    job = replace(job, teacher=None, gradient_checkpointing=False, micro_batch_size=1)
    length, parameters, matrix = 1000, job.student.parameters, job.student.matrix_parameters
    flops = length * 3 * (2 * matrix + 2 * 36 * 4096 * length)
    step, traffic = step_seconds(job, length, 4, FLAT)
    assert step == pytest.approx(4 * flops / 5e14)
    assert traffic == pytest.approx(4 * 7 / 8 * 3 * parameters * 2 / 1e12) and traffic < step
    step, traffic = step_seconds(replace(job, world_size=16), length, 4, FLAT)  # more than a host: it waits for traffic
    assert step == traffic == pytest.approx(4 * 15 / 16 * 3 * parameters * 2 / 1e10)
    offload = {**job.ds_config, "zero_optimization": {**job.zero, "offload_optimizer": {"device": "cpu"}}}
    on_host, _ = step_seconds(replace(job, ds_config=offload), length, 4, FLAT)
    assert on_host - 4 * flops / 5e14 == pytest.approx(parameters / 8 * 6 / 1e10 + parameters * 28 / 1e11)


def test_rows_and_what_to_change():
    config = load_config(CONFIGS / "student_9b_gqa.yaml", ["data.stages.3.max_length=8192"])
    table = make_table(config, [8, 4], [80 << 30, 10 << 30], FLAT._replace(price=2.0))
    assert [(row.gpus, row.gpu_bytes >> 30) for row in table.rows[::3]] == [(4, 10), (4, 80), (8, 10), (8, 80)]
    assert not any(row.fits for row in table.rows if row.gpu_bytes == 10 << 30)
    assert all(row.change for row in table.rows if not row.fits)
    fit = [row for row in table.rows if row.fits]
    assert fit and all(row.money == pytest.approx(row.hours * row.gpus * 2) for row in fit)
    assert {row.setting for row in table.rows} == {
        "as configured",
        "optimizer in host memory",
        "teacher and optimizer in host memory",
    }


@pytest.mark.parametrize("name", ["student_9b_gqa", "student_8b_gqa", "worker_9b"])
def test_the_configurations_print_tables_without_a_network(name, tmp_path, capsys):
    page, file = tmp_path / "plan.html", tmp_path / "plan.json"
    command = ["--config", str(CONFIGS / f"{name}.yaml"), "--gpus", "8", "16", "32", "--gpu-memory", "80", "141"]
    main([*command, "--price", "2.5", "--html", str(page), "--json", str(file)])
    said = capsys.readouterr().out
    for gpus in ("8", "16", "32"):
        for memory in ("80.0 GiB", "141.0 GiB"):
            assert f"{gpus:>6} {memory:>9}" in said
    found = json.loads(file.read_text())
    assert {row["gpus"] for row in found["rows"]} == {8, 16, 32} and found["teacher_parameters"] > 1e9
    assert all(row["money"] > 0 for row in found["rows"])
    assert "assumed: 40% of 989 TFLOP/s" in page.read_text() and "teacher weights" in page.read_text()


def test_wrong_use(tmp_path, capsys):
    config = ["--config", str(CONFIGS / "student_9b_gqa.yaml")]
    for wrong, said in (
        (["--price", "2"], "--price: only with --gpus"),
        (["--gpu-memory", "80", "141"], "several --gpu-memory: only with --gpus"),
        (["--gpus", "0"], "--gpus: 0, where 1 to 1,000,000"),
        (["--gpus", "9" * 30], "where 1 to 1,000,000"),
        (["--gpus", "8", "--mfu", "2"], "--mfu: 2, where a number from 1e-09 to 1 is needed"),
        (["--gpus", "8", "--peak-tflops", "1e-320", "--mfu", "1e-320"], "--peak-tflops: 9.99989e-321, where a number"),
        (["--gpus", "8", "--price", "nan"], "--price: nan, where a number from 1e-09 to 1e+09 is needed"),
    ):
        with pytest.raises(SystemExit):
            main([*config, *wrong])
        assert said in capsys.readouterr().err
    for content in ('{"kept": 1}', '{"rates": 1, "kept": 2}'):
        (tmp_path / "mine.json").write_text(content)
        assert main([*config, "--gpus", "8", "--json", str(tmp_path / "mine.json")]) == 1
        assert "--json" in capsys.readouterr().err and (tmp_path / "mine.json").read_text() == content


def test_tables_of_the_least_rates_are_made_and_ours_are_replaced(tmp_path):
    config = load_config(CONFIGS / "student_9b_gqa.yaml")
    least = Rates(peak_flops=1e3, mfu=1e-9, within_host=1.0, across_hosts=1.0, price=1e9)
    assert all(0 < row.hours < float("inf") for row in make_table(config, [8, 16], [80 << 30], least).rows)
    command = ["--config", str(CONFIGS / "student_9b_gqa.yaml"), "--gpus", "8", "--json", str(tmp_path / "made.json")]
    assert main(command) == main(command) == 0


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_a_pipe_as_an_output_is_not_waited_for(tmp_path, capsys, option):
    os.mkfifo(tmp_path / "pipe")
    command = ["--config", str(CONFIGS / "student_9b_gqa.yaml"), "--gpus", "8", option, str(tmp_path / "pipe")]
    assert main(command) == 1
    assert f"{option}: {tmp_path / 'pipe'} is no file but a pipe" in capsys.readouterr().err
