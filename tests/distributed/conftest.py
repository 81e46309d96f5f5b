"""One job of one rank and one of two run every scenario that the tests here look at; the tests only read the
results.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from distributed.scenario_table import CONFIG, DS, Table
from helpers.jobs import Job, wait_for_all
from kd.records.files import write_records
from kd.records.record import Record
from kd.rendering.encode import encode
from kd.sources.demo import corpus as demo


@dataclass(frozen=True)
class Runs:
    """Results of the scenarios, in a folder a world size."""

    folder: Path

    def __call__(self, world: int, name: str, rank: int = 0) -> dict:
        """Read what a scenario wrote."""
        return torch.load(self.folder / f"world{world}" / f"{name}.{rank}.pt", weights_only=False)


@pytest.fixture(scope="session")
def records(tokenizer) -> list[Record]:
    """Four records of one step: calls, results, answers and small talk, two of them weighted, and one too long for any
    step.
    """
    made = [demo.record("single", 1), demo.record("parallel", 2), demo.record("chat", 3), demo.record("multi", 4)]
    made = [Record(**{**vars(r), "quality": q}) for r, q in zip(made, (None, 0.5, None, 0.25))]
    # for the scenarios in which a rank has nothing to train
    long = Record("long", [{"role": "user", "content": "x y z " * 600}, {"role": "assistant", "content": "ok"}])
    return [*made, long]


@pytest.fixture(scope="session")
def runs(tmp_path_factory, records, tokenizer, teacher_folder) -> Runs:
    """runs(world, name, rank=0): what the scenario wrote."""
    out = tmp_path_factory.mktemp("runs")
    limit = max(len(encode(r, tokenizer).input_ids) for r in records[:4])
    (out / "ds.json").write_text(json.dumps(DS))
    (out / "ds2.json").write_text(json.dumps({**DS, "zero_optimization": {**DS["zero_optimization"], "stage": 2}}))
    (out / "run.yaml").write_text(CONFIG.format(out=out, teacher=teacher_folder, max_length=limit))
    for name, chosen in {
        "records": records[:4],
        "lonely": [records[1], records[4]],
        "one": [records[1]],
        "toolong": [records[4]] * 4,
    }.items():
        write_records(out / f"{name}.jsonl", chosen)

    tokenizer.save_pretrained(out / "turned")
    said = "{{- message['content'] or '' }}"
    opened = "{%- if message['role'] == 'assistant' and loop.last and opened %}{{ opened }}, {% endif %}"
    (out / "turned" / "chat_template.jinja").write_text(tokenizer.chat_template.replace(said, opened + said))

    # The same four records compressed, as an array, and as lines of which one is broken.
    (out / "formats1.jsonl.gz").write_bytes(gzip.compress((out / "records.jsonl").read_bytes().split(b"\n")[0]))
    (out / "formats2.json").write_text(json.dumps([vars(record) for record in records[1:3]]))
    split = {**vars(records[3]), "messages": []}
    for message in records[3].messages:  # with an empty message before each turn, which is joined to it
        split["messages"] += [{"role": "assistant", "content": ""}] * (message["role"] == "assistant") + [message]
    (out / "formats3.jsonl").write_text("broken\n" + json.dumps(split))

    spoiled = Record("spoiled", [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "bye<|end|>"}])
    write_records(out / "spoiled.jsonl", [*records[:4], spoiled])

    jobs = []
    for world, scenarios in Table(out, teacher_folder, len(tokenizer), records[1].id).scenarios().items():
        folder = out / f"world{world}"
        folder.mkdir()
        job = {"out": str(folder), "scenarios": [scenario.as_job(out / "run.yaml") for scenario in scenarios]}
        (out / f"world{world}.json").write_text(json.dumps(job))
        jobs.append(Job(["tests/distributed/scenarios.py", str(out / f"world{world}.json")], world))
    wait_for_all(jobs)
    return Runs(out)
