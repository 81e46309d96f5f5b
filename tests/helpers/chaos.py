"""A TCP proxy on loopback that breaks connections: at once, or after some bytes of the answers, by a reset or an
orderly end.
"""

from __future__ import annotations

import random
import socket
import struct
import threading


class Chaos:
    """`with Chaos(port, seed) as chaos`: chaos.port leads to `port`, and every connection breaks, by `most_bytes` at
    the latest.
    """

    def __init__(self, port: int, seed: int, most_bytes: int):
        self._target, self._random, self._most = port, random.Random(seed), most_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.num_broken = self._listener.getsockname()[1], 0

    def __enter__(self) -> Chaos:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *unused) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            allowed = self._random.choice([0, *(self._random.randrange(self._most) for _ in range(3))])
            threading.Thread(
                target=self._serve, args=(client, allowed, self._random.random() < 0.5), daemon=True
            ).start()

    def _serve(self, client: socket.socket, allowed: int, reset: bool) -> None:
        server = socket.create_connection(("127.0.0.1", self._target))
        threading.Thread(target=_forward, args=(client, server, 10**9), daemon=True).start()
        if _forward(server, client, allowed):
            self.num_broken += 1
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for end in (client, server):
            _shut(end)


def _forward(source: socket.socket, target: socket.socket, allowed: int) -> bool:
    """Bytes from one to the other; whether `allowed` ended before they did."""
    try:
        while allowed > 0:
            piece = source.recv(min(allowed, 65536))
            if not piece:
                target.shutdown(socket.SHUT_WR)
                return False
            target.sendall(piece)
            allowed -= len(piece)
        return True
    except OSError:
        return False


def _shut(end: socket.socket) -> None:
    try:  # noqa: SIM105
        end.shutdown(socket.SHUT_RD)
    except OSError:
        pass  # it is gone already
    end.close()
