"""Lines of a run's log where nobody can read them any more."""

from __future__ import annotations

import os
import sys

import pytest

from kd.distributed.console import say


def open_full():
    return os.open("/dev/full", os.O_WRONLY)


def open_unread():
    """Return the end of a pipe whose reader has gone, as `| head` leaves it."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("make", [open_full, open_unread])
def test_a_line_that_cannot_be_written_ends_nothing(monkeypatch, make):
    handle = make()
    with open(handle, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        say("step 1")
        say("step 2")
        os.dup2(os.open(os.devnull, os.O_WRONLY), handle)  # takes what the stream still holds
