"""Trackers by name get what metrics.jsonl gets; one that fails is left out, and one that is not here refused."""

from __future__ import annotations

import json
from asyncio import CancelledError

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, register_tracker_class

from helpers.forked import run_ranks
from kd.training.log import RunLog
from kd.training.trackers import TrackerError, Trackers, check_trackers

LINE = {"stage": "a", "temperature": 1.0, "lr": 1.0, "grad_norm": 1.0, "tokens_per_second": 1.0, "memory_gib": 1.0}
TOLD: list[tuple] = []


class Kept(GeneralTracker):
    name, requires_logging_directory, main_process_only = "kept", False, True

    def __init__(self, run_name: str):
        super().__init__()
        self._run_name = run_name

    def start(self):
        TOLD.append(("start", self._run_name))

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        TOLD.append(("settings", values))

    def log(self, values, step=None, **kwargs):
        if values.get("lr", 0) > 1:
            gone = ConnectionError("the server is gone\nand more")
            raise {2: gone, 3: SystemExit(0), 4: CancelledError()}[values["lr"]]
        TOLD.append((step, values))

    def finish(self):
        TOLD.append(("finish",))


@pytest.fixture(autouse=True)
def kept():
    TOLD.clear()
    register_tracker_class(Kept)
    yield
    del LOGGER_TYPE_TO_CLASS["kept"]


def test_rank_0_alone_begins_a_tracker(tmp_path):
    """The first, as forks of a process with a group of its own would take that one."""

    def work():
        if torch.distributed.get_rank() == 0:
            trackers = Trackers(["tensorboard"], "r", tmp_path / "t", {"a": 1}, print)
            trackers.log({"loss": 1.0}, 1)
            trackers.close()
            assert list((tmp_path / "t" / "r").rglob("events.out.tfevents*"))

    run_ranks(2, work, tmp_path / "log")


def test_each_line_goes_to_each_tracker(tmp_path, one_rank):
    said: list[str] = []
    settings = {"run": {"name": "r"}, "data": {"stages": [{"name": "a"}]}, "none": None}
    check_trackers(["kept", "tensorboard"])
    threads = torch.get_num_threads()
    log = RunLog(tmp_path, 2, trackers=Trackers(["kept", "tensorboard"], "r", tmp_path / "t", settings, said.append))
    assert not (tmp_path / "t").exists()  # a run that takes no step leaves nothing
    log.line({"step": 1, **LINE})
    log.validation(1, {"seen": {"loss": 2.0}})
    log.close()
    assert TOLD[0] == ("start", "r")
    assert TOLD[1] == ("settings", {"run.name": "r", "data.stages": json.dumps([{"name": "a"}])})
    assert TOLD[2] == (1, {key: value for key, value in LINE.items() if key != "stage"})
    assert TOLD[3:] == [(1, {"validation/seen/loss": 2.0}), ("finish",)] and said == []
    assert list((tmp_path / "t" / "r").rglob("events.out.tfevents*")) and torch.get_num_threads() == threads


@pytest.mark.parametrize("lr, words", [(2.0, "the server is gone"), (3.0, "SystemExit: 0"), (4.0, "CancelledError")])
def test_one_that_fails_ends_and_the_run_goes_on(tmp_path, one_rank, lr, words):
    said: list[str] = []
    log = RunLog(tmp_path, 2, trackers=Trackers(["kept"], "r", tmp_path / "t", {}, said.append))
    log.line({"step": 1, **LINE})
    log.line({"step": 2, **LINE, "lr": lr})
    log.line({"step": 3, **LINE})
    log.close()
    (one,) = said
    assert one == f"tracker kept ends here ({words}); training goes on, and metrics.jsonl has all"
    assert [step for step, *_ in TOLD if isinstance(step, int)] == [1]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_what_is_not_here_is_refused():
    with pytest.raises(TrackerError, match="run.trackers: no tracker 'wanbd': choose from .*wandb"):
        check_trackers(["wanbd"])
    with pytest.raises(TrackerError, match="the package of clearml is not installed"):
        check_trackers(["clearml"])
