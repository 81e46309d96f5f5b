"""Board of a job: a key-value store of its own, in which ranks say that they are there, that they failed, and why.

It works where collectives do not: before the process group is made, and while other ranks wait in a collective for one
that will not come.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # exported by nothing public that types know

from kd.distributed.place import Place, StartError

CONNECT_SECONDS = 300.0  # for rank 0 to come up
JOIN_SECONDS = 600.0  # for all ranks to come up
_ANSWER_SECONDS = 20.0  # for what listens on the port to answer as a store does
_PATIENCE = 20.0  # before the missing ranks are named
_TELL_SECONDS = 3.0  # for rank 0 to tell the error that other ranks have too
END_SECONDS = 10.0  # for a rank to end by itself once another has failed; the store lives as long
_POLL = 0.2

_FAILED = "failed"


class Board:
    """Board of one job. `store` is for the process group: what is written there does not meet the board's keys.

    Raises:
        StartError: the port is another job's, or rank 0 does not come.
    """

    def __init__(self, place: Place, connect_seconds: float = CONNECT_SECONDS):
        self.place = place
        # torchrun hosts the store itself
        hosts = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self._store = _connect(place, hosts, connect_seconds)
        self._board = PrefixStore("spanwise", self._store)
        if place.rank and not hosts and self._board.add(f"here/{place.rank}", 1) > 1:
            raise StartError(_port_taken(place))

    @property
    def store(self) -> Store:
        """Store for the process group."""
        return PrefixStore("group", self._store)

    def join(self, say: Callable[[str], None]) -> None:
        """Wait until every rank is there.

        Args:
            say: is told by rank 0 which ranks are missing, after a while.

        Raises:
            StartError: one is missing after JOIN_SECONDS, or has failed.
        """
        if self.place.rank == 0:
            self._board.add("here/0", 1)
        started, told = time.monotonic(), False
        missing = set(range(self.place.world_size))
        while missing:
            missing = {rank for rank in missing if not self._board.check([f"here/{rank}"])}
            if missing and self._board.check([_FAILED]):
                raise PeerFailed("another rank failed while this one waited for it")
            waited = time.monotonic() - started
            if missing and waited > JOIN_SECONDS:
                raise StartError(
                    f"{_list(missing)} of {self.place.world_size} did not come within {JOIN_SECONDS:.0f} s to "
                    f"{self.place.address}:{self.place.port}: start as many processes as WORLD_SIZE says, and look "
                    "at their own output"
                )
            if missing and waited > _PATIENCE and self.place.rank == 0 and not told:
                told = True
                say(f"waiting for {_list(missing)} of {self.place.world_size}")
            time.sleep(_POLL if missing else 0)

    def others_failed(self) -> bool:
        """Tell whether a rank other than this one was the first to fail."""
        return self._board.check([_FAILED]) and self._board.get(_FAILED) != str(self.place.rank).encode()

    def claim(self, text: str) -> bool:
        """Tell whether this rank is to print an error: once a job, by rank 0 where it has the same one.

        The other ranks learn that this one has failed.
        """
        key = "told/" + hashlib.sha256(text.encode(errors="replace")).hexdigest()
        self._board.compare_set(_FAILED, "", str(self.place.rank))
        deadline = time.monotonic() + (_TELL_SECONDS if self.place.rank else 0)
        while time.monotonic() < deadline and not self._board.check([key]):
            time.sleep(_POLL)
        return self._board.add(key, 1) == 1

    def watch(self) -> None:
        """End this process, in a thread, when another rank has failed and this one waits for it in a collective."""
        watched = Board.__new__(Board)  # a connection of its own: the other may be waiting in a call
        watched.place, watched._store = self.place, _connect(self.place, False, CONNECT_SECONDS)
        watched._board = PrefixStore("spanwise", watched._store)
        threading.Thread(target=watched._end_with_others, name="board", daemon=True).start()

    def _end_with_others(self) -> None:
        while True:
            try:
                if self._board.check([_FAILED]):
                    break
            except RuntimeError:  # rank 0, which hosts the store, has ended
                break
            time.sleep(1)
        time.sleep(END_SECONDS / 2)  # an error that all ranks share comes to this one by itself
        self.leave()
        os._exit(1)

    def leave(self, seconds: float = END_SECONDS) -> None:
        """Say that this rank ends; rank 0 waits for the others to have read the board, for `seconds` at most."""
        try:
            self._board.add(f"left/{self.place.rank}", 1)
            others = [f"left/{rank}" for rank in range(1, self.place.world_size)]
            deadline = time.monotonic() + (seconds if self.place.rank == 0 else 0)
            while time.monotonic() < deadline and not self._board.check(others):
                time.sleep(_POLL)
        except RuntimeError:  # the host has gone already
            return


class PeerFailed(StartError):
    """Failure of another rank, which tells it itself."""


def _connect(place: Place, hosts: bool, seconds: float) -> TCPStore:
    if not hosts:
        _wait_for_host(place, seconds)
    try:
        store = TCPStore(
            place.address,
            place.port,
            None,
            hosts,
            timedelta(seconds=_ANSWER_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
        store.set_timeout(timedelta(seconds=JOIN_SECONDS))
        return store
    except (RuntimeError, ValueError) as error:
        if hosts and "EADDRINUSE" in str(error):
            raise StartError(_port_taken(place)) from None
        if hosts:
            raise StartError(
                f"rank 0 cannot listen on {place.address}:{place.port} ({_first_line(error)}): MASTER_ADDR must be an "
                "address of the machine that rank 0 runs on"
            ) from None
        raise StartError(_no_answer(place, error)) from None


def _wait_for_host(place: Place, seconds: float) -> None:
    """Wait until something listens where rank 0 is met; TCPStore itself logs a stack trace where nothing does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((place.address, place.port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise StartError(_no_answer(place, error)) from None
        time.sleep(_POLL)


def _no_answer(place: Place, error: Exception) -> str:
    return (
        f"rank 0 does not answer at {place.address}:{place.port} ({_first_line(error)}): look at its own output, and "
        "check MASTER_ADDR and MASTER_PORT"
    )


def _port_taken(place: Place) -> str:
    return (
        f"port {place.port} of {place.address} is in use, by another job or program: give this job another one, as in "
        f"`deepspeed --master_port {place.port + 1 if place.port < 65535 else 29500} ...`, or end the other"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _list(ranks: set[int]) -> str:
    shown = ", ".join(map(str, sorted(ranks)[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
