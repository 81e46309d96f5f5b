"""An HTTP server on loopback in vLLM's form, over any function from token ids to logits; and ways for it to misbehave.

A fault is a function (handler, request, answer) that sends a reply of its own, or gives False to let the right one go
out. A `Server` takes them by the number of the request: `faults[0]` for the first completion, and so on.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from torch import Tensor

MODEL = "demo"


def prompt_logprobs(token_ids: list[int], logits: Tensor, k: int, decode: Callable[[int], str]) -> list:
    """As vLLM builds it: null, then for each token that token first and the k best after it, -inf as -9999."""
    log_probs = torch.log_softmax(logits.float(), -1)
    best = log_probs.topk(min(k, log_probs.shape[1]), -1)
    table: list = [None]
    for t, token in enumerate(token_ids[1:]):
        rank = int((log_probs[t] > log_probs[t, token]).sum()) + 1
        ranked = [(token, rank), *((i, r) for r, i in enumerate(best.indices[t].tolist(), 1))]
        table.append(
            {
                str(i): {"logprob": max(float(log_probs[t, i]), -9999.0), "rank": r, "decoded_token": decode(i)}
                for i, r in ranked
            }
        )
    return table


class Server:
    """`with Server(logits_of) as server`: server.url ends with /v1. `requests` are the bodies of completions, in order
    of arrival.

    Args:
        logits_of: [T, V] logits of T token ids; row t predicts token t + 1.
        faults: by number of the completion, or a function of (number, request) that gives one or None.
        key: that a request must carry; None takes all.
        max_logprobs, max_model_len: vLLM's options of these names.
        token_ids: whether the version knows return_token_ids.
        serve: (logits, request) -> the logits that it reports, for servers that get them wrong.
    """

    def __init__(
        self,
        logits_of: Callable[[list[int]], Tensor],
        *,
        faults=(),
        key: str | None = None,
        max_logprobs: int = 10**6,
        max_model_len: int = 4096,
        token_ids: bool = True,
        decode: Callable[[int], str] = str,
        serve: Callable[[Tensor, dict], Tensor] = lambda logits, request: logits,
    ):
        self.logits_of, self.key, self.decode, self.serve = logits_of, key, decode, serve
        self.max_logprobs, self.max_model_len, self.token_ids = max_logprobs, max_model_len, token_ids
        self.fault_of = (
            faults if callable(faults) else lambda number, request: faults[number] if number < len(faults) else None
        )
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.active = self.most_active = 0
        self.lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *unused) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, request: dict) -> dict:
        ids, k = request["prompt"], request["prompt_logprobs"]
        choice = {
            "index": 0,
            "text": "?",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
            "prompt_logprobs": prompt_logprobs(ids, self.serve(self.logits_of(ids), request), k, self.decode),
        }
        if self.token_ids:
            choice |= {"prompt_token_ids": ids, "token_ids": [0]}
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": request["model"],
            "choices": [choice],
            "usage": usage,
        }

    def refusal(self, request: dict) -> tuple[int, str] | None:
        if request["model"] != MODEL:
            return 404, f"The model `{request['model']}` does not exist."
        if request["prompt_logprobs"] > self.max_logprobs:
            return (
                400,
                f"Requested prompt logprobs of {request['prompt_logprobs']}, which is greater than max allowed: "
                f"{self.max_logprobs}",
            )
        needed = len(request["prompt"]) + request["max_tokens"]
        if needed > self.max_model_len:
            return (
                400,
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested "
                f"{needed} tokens.",
            )
        return None


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    owner: Server

    def handle_error(self, request, client_address) -> None:
        """A client that went away is no news in a test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: without it the second waits 40 ms

    def log_message(self, *unused) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        server = self.server.owner
        card = {
            "id": MODEL,
            "object": "model",
            "owned_by": "vllm",
            "root": MODEL,
            "max_model_len": server.max_model_len,
        }
        if self.allowed():
            self.send(
                *(200, {"object": "list", "data": [card]})
                if self.path == "/v1/models"
                else (404, {"detail": "Not Found"})
            )

    def do_POST(self) -> None:
        server = self.server.owner
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.requests)
            server.requests.append(request)
            server.headers.append(dict(self.headers))
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        try:
            if not self.allowed():
                return
            refusal = server.refusal(request)
            if refusal:
                self.send(refusal[0], error(*refusal))
                return
            fault = server.fault_of(number, request)
            answer = server.answer(request)
            if fault is None or fault(self, request, answer) is False:
                self.send(200, answer)
        finally:
            with server.lock:
                server.active -= 1

    def allowed(self) -> bool:
        key = self.server.owner.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self.send(401, {"error": f"Unauthorized: {self.headers.get('Authorization')}"})
        return False

    def send(self, status: int, body, headers: dict[str, str] | None = None, kind: str = "application/json") -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(raw)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)


def error(status: int, message: str) -> dict:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}


def status(code: int, headers: dict[str, str] | None = None, message: str = "not now"):
    def send(handler, request, answer):
        handler.send(code, error(code, message), headers)

    return send


def body(raw, kind: str = "application/json", code: int = 200):
    def send(handler, request, answer):
        handler.send(code, raw, kind=kind)

    return send


def changed(change: Callable[[dict], None]):
    """The right answer with a change made to choices[0]."""

    def send(handler, request, answer):
        change(answer["choices"][0])
        handler.send(200, answer)

    return send


def reset_in_body(handler, request, answer):
    """Half of the body, then a TCP reset."""
    raw = json.dumps(answer).encode()
    handler.send(200, raw[: len(raw) // 2], {"Content-Length": str(len(raw))})
    handler.wfile.flush()
    time.sleep(0.02)  # let the half arrive: a reset throws away what was not read
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.rfile.close()  # it holds the socket open
    handler.connection.close()
    handler.close_connection = True


def cut_body(handler, request, answer):
    """Half of the body, then an orderly end."""
    raw = json.dumps(answer).encode()
    handler.send(200, raw[: len(raw) // 2], {"Content-Length": str(len(raw))})
    handler.close_connection = True


def no_reply(handler, request, answer):
    handler.close_connection = True


def drip(headers: bool, pause: float, num: int):
    """A byte at a time, each soon enough for a time limit of one read."""

    def send(handler, request, answer):
        handler.wfile.write(
            b"HTTP/1.1 200 OK\r\n"
            + (b"" if headers else b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        )
        for _ in range(num):
            handler.wfile.write(b"X" if headers else b" ")
            handler.wfile.flush()
            time.sleep(pause)
        handler.close_connection = True

    return send
