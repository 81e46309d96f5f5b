"""A dry run asks its sample, says what all would cost, and pays for no more; prompts come from the hub too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.chat_server import message
from helpers.hub_server import HubServer
from helpers.jobs import plain_environment
from helpers.teaching_server import TeachingServer, price, settings_of
from launch import generate as command

GENERATE = Path(command.__file__)


def write(settings, tmp_path) -> str:
    (tmp_path / "g.yaml").write_text(json.dumps(settings))
    return str(tmp_path / "g.yaml")


def test_a_dry_run_estimates_from_its_sample_and_asks_no_more(tmp_path, capsys):
    """All prompts are as long: the estimate is exact."""
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "Say {at}"}}\n' for at in range(10, 30)))
    with TeachingServer(lambda request: message("It is fine.")) as server:
        settings = settings_of(server, tmp_path)
        settings["prompts"] = {"files": [str(tmp_path / "p.jsonl")], "tools": settings["prompts"]["tools"]}
        path = write(settings, tmp_path)
        assert command.main(["--config", path, "--dry-run", "3"]) == 0
        said = capsys.readouterr().out
        assert len(server.requests) == 3 and not (tmp_path / "out" / "train.jsonl").exists()
        whole = server.billed / 3 * 20 / 1e6
        assert "sample     3 of 20 prompts, kept\n" in said
        assert f"cost       about {whole:.4g} (95 %: {whole:.4g} to {whole:.4g})" in said
        assert "tokens     about" in said and f"{20 * 7:,} generated" in said and "time       about" in said
        assert command.main(["--config", path, "--dry-run", "3"]) == 0 and len(server.requests) == 3  # kept
        assert "3 answers are there from an earlier start" in capsys.readouterr().out
        assert command.main(["--config", path]) == 0
        card = json.loads((tmp_path / "out" / "card.json").read_text())
        assert len(server.requests) == 20 == card["records"]
        assert card["spent"]["total"] == pytest.approx(whole) == pytest.approx(server.billed / 1e6)


def test_a_dry_run_stays_within_the_limit(tmp_path, capsys):
    with TeachingServer() as server:
        limit = 4 * price({"prompt_tokens": 400, "completion_tokens": 60}) / 1e6
        path = write(settings_of(server, tmp_path, spending__limit=limit), tmp_path)
        command.main(["--config", path, "--dry-run", "16"])
        assert 0 < server.billed <= limit * 1e6
    capsys.readouterr()


def test_prompts_of_a_data_set_of_the_hub_are_asked(tmp_path):
    """By the real libraries, from a stand-in for the hub; the copy's first line is no prompt."""
    lines = "".join(f'{{"id": "h{at}", "prompt": "Say {at}"}}\n' for at in range(4)).encode()
    with HubServer({"org/asks": {"main": {"train.jsonl": lines}}}) as hub, TeachingServer() as server:
        environment = plain_environment(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "h"), NO_PROXY="*")
        del environment["HF_HUB_OFFLINE"]
        settings = settings_of(server, tmp_path)
        settings["prompts"] = {"files": ["hub:org/asks"], "num": 3, "tools": settings["prompts"]["tools"]}
        ran = [sys.executable, str(GENERATE), "--config", write(settings, tmp_path)]
        done = subprocess.run(ran, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    asked = [one["messages"][0]["content"] for one in records]
    assert asked == ["Say 0", "Say 1", "Say 2"]
    assert "records    3 of 3 prompts" in done.stdout
