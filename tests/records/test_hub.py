"""Data sets of the hub, by the real `datasets` and `huggingface_hub`, from a stand-in for the hub on loopback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.hub_server import HubServer
from helpers.jobs import REPOSITORY, plain_environment
from kd.config.sections.data import Data
from kd.config.sections.hub_address import HubDataset, parse_address
from kd.records.checks import DataError
from kd.records.files import expand
from kd.records.hub import copy_of
from launch import evaluate as evaluate_command

PROGRAM = """
import json, sys
from kd.records.checks import DataError
from kd.records.files import expand, read_records

for address in sys.argv[1:]:
    try:
        (file,) = expand([address])
        header = json.loads(file.read_text().splitlines()[0])["__header__"]
        print(json.dumps({"ids": [record.id for record in read_records(address)], "file": str(file), **header}))
    except DataError as error:
        print(json.dumps({"error": str(error)}))
"""


def lines(prefix: str, count: int) -> bytes:
    messages = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]
    made = ({"id": f"{prefix}{index}", "messages": messages} for index in range(count))
    return b"".join(json.dumps(one).encode() + b"\n" for one in made)


def read(hub: HubServer, home, *addresses: str) -> list[dict]:
    """Read addresses in a process of its own: huggingface_hub takes its settings from the environment once."""
    environment = plain_environment(HF_ENDPOINT=hub.url, HF_HOME=str(home), HF_HUB_DISABLE_TELEMETRY="1", NO_PROXY="*")
    del environment["HF_HUB_OFFLINE"]
    command = [sys.executable, "-c", PROGRAM, *addresses]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_data_set_is_copied_once_at_its_commit_and_read_as_a_file(tmp_path):
    commits = {
        "main": {"train.jsonl": lines("a", 3), "test.jsonl": lines("t", 2)},
        "v1": {"train.jsonl": lines("old", 1)},
    }
    part = HubDataset("org/tools", split="train[1:]").address()
    wanted = ("hub:org/tools", "hub:org/tools?split=test", "hub:org/tools?revision=v1", part)
    wrong = ("hub:org/none", "hub:org/tools?revision=v9", "hub:org/tools?split=dev", "hub:org/tools?config=c")
    with HubServer({"org/tools": commits}) as hub:
        *found, no_set, no_revision, no_split, no_config = read(hub, tmp_path, *wanted, *wrong)
        num_asked = len(hub.asked)
        again = read(hub, tmp_path, *wanted)
        assert len(hub.asked) == num_asked  # a copy needs no network
    assert again == found
    assert [one["ids"] for one in found] == [["a0", "a1", "a2"], ["t0", "t1"], ["old0"], ["a1", "a2"]]
    assert [one["dataset"]["revision"] for one in found] == [None, None, "v1", None]
    assert found[0]["commit"] == found[1]["commit"] != found[2]["commit"]
    assert no_set["error"].startswith("hub:org/none: the hub has no such data set, or it needs a token")
    assert no_revision["error"] == (
        "hub:org/tools?revision=v9: it has no revision 'v9': give a commit, tag or branch that is there"
    )
    assert "Bad split: dev. Available splits: ['train', 'test']" in no_split["error"]
    assert "'c' not found" in no_config["error"]
    (unreachable,) = read(hub, tmp_path / "other", "hub:org/tools")
    assert "cannot be reached" in unreachable["error"] and "put the file there" in unreachable["error"]
    made = [path for path in tmp_path.rglob("*") if path.is_file() and "spanwise" in path.parts]
    assert sorted(path.name for path in made if path.suffix == ".jsonl") == sorted(
        {one["file"].rsplit("/", 1)[1] for one in found}
    )


@pytest.mark.parametrize(("make", "said"), [(Path.mkdir, "is a folder"), (os.mkfifo, "is a pipe or device")])
def test_what_is_no_file_in_a_copys_place_is_named(tmp_path, monkeypatch, make, said):
    """`hub:org/x: no such data file` was told of it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    path = copy_of(HubDataset("org/x"))
    path.parent.mkdir(parents=True)
    make(path)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: {said}"):
        expand(["hub:org/x"])


def test_evaluate_takes_addresses_with_and_without_a_name():
    given = ["--model", "m", "--data", "hub:org/tools?split=test", "--data", "dev=hub:org/tools?split=dev"]
    found = evaluate_command.parse([*given, "--out", "o"]).data
    assert [(name, str(path)) for name, path in found] == [
        ("tools?split=test", "hub:org/tools?split=test"),
        ("dev", "hub:org/tools?split=dev"),
    ]


def data(train, **more) -> Data:
    return Data(stages=({"name": "a", "max_length": 9, "train": (train,)},), **more)


@pytest.mark.parametrize(
    ("mapping", "address"),
    [
        ({"dataset": "org/tools"}, "hub:org/tools"),
        (
            {"dataset": "org/tools", "split": "train[:10%]", "config": "a b"},
            "hub:org/tools?split=train%5B%3A10%25%5D&config=a+b",
        ),
        ({"dataset": "org/tools", "split": "test", "revision": "v1"}, "hub:org/tools?split=test&revision=v1"),
    ],
)
def test_a_mapping_is_an_address(mapping, address):
    assert data(mapping).stages[0].train[0].files == address
    assert data({**mapping, "weight": 2.0}).stages[0].train[0].weight == 2.0
    assert data("a.jsonl", evaluation={"test": mapping}).evaluation == {"test": address}
    again = data(data(mapping).stages[0].train[0].model_dump())
    assert again == data(mapping)  # as config.yaml keeps it
    names = {"dataset": "name"}
    assert parse_address(address) == HubDataset(**{names.get(key, key): value for key, value in mapping.items()})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dataset": 5}, "each a text"),
        ({"dataset": "two words"}, "a data set is org/name"),
        ({"dataset": "../x"}, "a data set is org/name"),
        ({"dataset": ".."}, "a data set is org/name"),
        ({"dataset": "org/tools", "split": ""}, "split has one value, and no blank one"),
        ({"dataset": "org/tools", "spilt": "test"}, "Extra inputs"),
        ("hub:", "a data set is org/name"),
        ("hub:org/tools?splits=test", "'splits' is none of split, config, revision"),
        ("hub:org/tools?split=a&split=b", "split has one value"),
        ("hub:org/tools?test", "'test' is none of"),
    ],
)
def test_an_address_that_is_none_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        data(wrong)
