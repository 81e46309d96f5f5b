"""The vLLM sampler against a stand-in on loopback: what it asks, what it reads, and what it refuses."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from kd.config.schema import Rollouts, Server
from kd.rollouts.decode import Sampled
from kd.rollouts.sampler import OpenSampler, open_sampler
from kd.rollouts.vllm_sampler import ServerError


class StandIn(BaseHTTPRequestHandler):
    """Answers each prompt by its own tokens and a stop (5); its state is the server's."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state = self.server.state
        state["asked"].append((self.path, body))
        if self.path in state["broken"]:
            self.reply(404, {"detail": "Not Found"})
        elif self.path == "/v1/completions":
            ids = [*body["prompt"], 5]
            choice = {"token_ids": ids, "logprobs": {"token_logprobs": [-0.5] * len(ids)}, "finish_reason": "stop"}
            self.reply(200, {"choices": [{**choice, **state["changed"]}]})
        else:
            self.reply(200, {})

    def reply(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def sampler(server, tmp_path):
    server.state = {"asked": [], "broken": set(), "changed": {}}
    address = f"http://127.0.0.1:{server.server_port}"
    rollouts = Rollouts(
        repair=1.0,
        engine="vllm",
        server=Server(url=address, model="student", weights=str(tmp_path / "weights"), timeout_seconds=20.0),
        max_new_tokens=9,
        temperature=0.7,
        top_p=0.9,
        batch_size=3,
    )
    made = open_sampler(
        OpenSampler(
            rollouts,
            model=None,
            copy=None,
            tokenizer=range(50),
            stop_ids=[5, 6],
            export=lambda path: path.write_text("weights"),
            rank=0,
        )
    )
    yield SimpleNamespace(ask=made, state=server.state, weights=tmp_path / "weights")
    made.close()


def test_a_round_gives_the_server_the_weights_and_reads_tokens_as_they_were_sampled(sampler):
    sampler.ask.refresh()
    assert sampler.weights.read_text() == "weights"
    assert [path for path, _ in sampler.state["asked"]] == ["/collective_rpc", "/reset_prefix_cache"]
    assert sampler.state["asked"][0][1] == {"method": "reload_weights"}
    found = sampler.ask.sample([[7, 8], [9], [1, 2, 3], [4]], [3, 2**64 - 1, 5, 6])
    assert found == [Sampled([*ids, 5], [-0.5] * (len(ids) + 1)) for ids in ([7, 8], [9], [1, 2, 3], [4])]
    bodies = {tuple(body["prompt"]): body for path, body in sampler.state["asked"] if path == "/v1/completions"}
    assert bodies[7, 8]["seed"] == 3 and 0 <= bodies[9,]["seed"] < 2**63
    wanted = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 9, "stop_token_ids": [5, 6], "return_token_ids": True}
    assert wanted.items() <= bodies[4,].items()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"token_ids": [1, 99]}, "serve the run's own student"),
        ({"logprobs": {"token_logprobs": [-0.5]}}, "serve the run's own student"),
        ({"logprobs": {"token_logprobs": [-0.5, None, 0.0]}}, "serve the run's own student"),
        ({"logprobs": None}, "knows return_token_ids"),
        ({"token_ids": 5}, "http://127.0.0.1:.*are no list"),
        ({"token_ids": {"a": 1}}, "are no list"),
        ({"logprobs": {"token_logprobs": None}}, "are no list"),
        ({"logprobs": {"token_logprobs": "xxx"}}, "are no list"),
        ({"token_ids": [True, 8, 5]}, "serve the run's own student"),
        ({"token_ids": [7, 8, 9]}, "the run's stops are 5, 6"),
        ({"finish_reason": "length"}, "the run's stops are 5, 6"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused(sampler, changed, message):
    sampler.state["changed"].update(changed)
    with pytest.raises(ServerError, match=message):
        sampler.ask.sample([[7, 8]], [1])


@pytest.mark.parametrize("content", [b"{", b"<html>", b"[" * 100_000, b"\xff\xfe", b""])
def test_an_answer_that_is_no_json_names_the_server(sampler, monkeypatch, content):
    monkeypatch.setattr(sampler.ask, "_post", lambda path, body: SimpleNamespace(content=content))
    with pytest.raises(ServerError, match="http://127.0.0.1:.*bytes that are no JSON"):
        sampler.ask.sample([[7, 8]], [1])


@pytest.mark.parametrize(
    "content", [b"5", b"[]", b"null", b'{"choices": 5}', b'{"choices": [5]}', b'{"choices": [[]]}']
)
def test_an_answer_of_another_form_names_the_server(sampler, monkeypatch, content):
    monkeypatch.setattr(sampler.ask, "_post", lambda path, body: SimpleNamespace(content=content))
    with pytest.raises(ServerError, match="http://127.0.0.1:.*its answer has no"):
        sampler.ask.sample([[7, 8]], [1])


def test_a_server_without_its_development_mode_is_told(sampler):
    sampler.state["broken"].add("/collective_rpc")
    with pytest.raises(ServerError, match=r"status 404.*VLLM_SERVER_DEV_MODE=1"):
        sampler.ask.refresh()
