"""Programs whose standard output is closed: no traceback, the exit code of their work, and their files whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from helpers.jobs import REPOSITORY, plain_environment
from helpers.teaching_server import TeachingServer, settings_of

CLOSED = ("import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",)


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script with file 1 closed, as `>&-` does."""
    command = [sys.executable, "-c", *CLOSED, str(REPOSITORY / "launch" / script), *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, env=plain_environment(), timeout=200)


def test_plan(tmp_path):
    config = REPOSITORY / "configs" / "student_9b_gqa.yaml"
    done = run("plan.py", "--config", config, "--gpus", 8, "--json", tmp_path / "p.json", "--html", tmp_path / "p.html")
    assert (done.returncode, done.stderr) == (0, "") and json.loads((tmp_path / "p.json").read_text())["rows"]
    done = run("plan.py", "--config", config, "--world-size", 1, "--gpu-memory", 1)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("num", [3, 0])
def test_generate(tmp_path, num):
    with TeachingServer() as server:
        settings = settings_of(server, tmp_path, prompts__num=max(num, 1))
        settings["endpoint"]["url"] = server.url if num else "http://127.0.0.1:1/v1"
        settings["endpoint"]["retries"] = 0
        (tmp_path / "g.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
        done = run("generate.py", "--config", tmp_path / "g.yaml")
    assert done.returncode == (0 if num else 1) and "Traceback" not in done.stderr, done.stderr
    assert os.path.exists(tmp_path / "out" / "card.json") is bool(num)
    assert num or "endpoint.url" in done.stderr


def test_evaluate(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    done = run("evaluate.py", "--compare", f"a={tmp_path}/a.json", f"b={tmp_path}/a.json", "--out", tmp_path / "out")
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr and "a.json" in done.stderr
