"""Speed and memory of a data set: close to what the server's answers allow, and not growing with what is said."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time

import pytest

from helpers.teaching_server import settings_of
from kd.config.schema import Endpoint
from kd.config.sections.generation import GenerationConfig
from kd.endpoint.chat import Chat
from kd.endpoint.http import Wire
from kd.generation import data_set as data_sets
from kd.generation.budget import Usage
from kd.generation.data_set import DataSet
from kd.generation.teacher import Said, Teacher

NUM, SECONDS, AT_ONCE, LEAST = 1000, 0.05, 32, 0.85
SERVER = """
import asyncio, json
choice = {"index": 0, "message": {"role": "assistant", "content": "It is fine."}, "finish_reason": "stop"}
usage = {"prompt_tokens": 20, "completion_tokens": 5}
raw = json.dumps({"choices": [choice], "usage": usage, "data": [{"id": "demo"}]}).encode()
head = f"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: {len(raw)}\\r\\n\\r\\n"
reply = head.encode() + raw

class Answer(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.came = transport, b""

    def data_received(self, data):
        self.came += data
        head, found, body = self.came.partition(b"\\r\\n\\r\\n")
        sizes = [int(line[15:]) for line in head.lower().split(b"\\r\\n") if line.startswith(b"content-length:")]
        if found and len(body) == sum(sizes):
            self.came = b""
            asyncio.get_running_loop().call_later(SECONDS if sizes else 0, self.transport.write, reply)

async def main():
    server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def url():
    """Address of a server of its own process, which answers each request after SECONDS."""
    command = [sys.executable, "-c", SERVER.replace("SECONDS", str(SECONDS))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.terminate()


class Place:
    """What `settings_of` needs of a server."""

    def __init__(self, url):
        self.url = url


def make_settings(url, folder, num):
    settings = settings_of(Place(url), folder, prompts__num=num, spending={})
    settings["endpoint"] |= {"concurrency": AT_ONCE}
    settings["prompts"]["mix"] = {"several": 0.0, "near_miss": 0.0, "missing": 0.0, "recovery": 0.0}
    return settings


async def ask_bare(url, num):
    """Ask as often by the client alone, which is all that this machine can do."""
    wire = Wire(Endpoint.model_validate({"url": url, "model": "demo", "concurrency": AT_ONCE}), lambda text: None)
    free = asyncio.Semaphore(AT_ONCE)

    async def ask(number):
        async with free:
            body = {"messages": [{"role": "user", "content": f"{number} " * 100}]}
            await wire.ask("POST", "/chat/completions", body)

    await asyncio.gather(*map(ask, range(num)))
    await wire.close()


@pytest.mark.slow
def test_a_thousand_prompts_take_little_longer_than_their_answers(url, tmp_path):
    """85 % of the ideal, 1,000 * 50 ms / 32, in the best of five runs, where one core is free for it.

    Other programs may keep this one waiting. Where they do (the wall is far over the processor's time), the processor's
    time is the measure: it must leave the throughput possible.
    """
    asyncio.run(ask_bare(url, NUM))  # the first time loads modules
    bare, ideal, walls, processors = time.process_time(), NUM * SECONDS / AT_ONCE, [], []
    asyncio.run(ask_bare(url, NUM))
    bare = time.process_time() - bare
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        with DataSet(GenerationConfig.model_validate(make_settings(url, folder, NUM)), lambda text: None) as made:
            begun, used = time.perf_counter(), time.process_time()
            ended = made.ask()
            walls.append(time.perf_counter() - begun)
            processors.append(time.process_time() - used)
            assert made.journal.count("done") == ended.num_tasks == NUM
    wall, processor = min(walls), min(processors)
    print(
        f"ideal {ideal:.2f} s, wall {wall:.2f} s ({ideal / wall:.0%}), processor {processor:.2f} s, client {bare:.2f} s"
    )
    taken = wall if wall < 1.5 * max(processor, ideal) else processor
    assert ideal / taken >= LEAST, (ideal, wall, processor, bare)


class Silent(Teacher):
    """Teacher that says the same at once."""

    async def check(self, key, say):
        """Check nothing."""

    async def ask(self, question):
        return Said(Chat("It is fine.", [], 5, True), False, Usage(20, 5))


def grow(num, tmp_path, monkeypatch):
    """Peak of this process's memory, in MiB, that a data set of so many prompts adds."""
    tmp_path.mkdir()
    monkeypatch.setattr(data_sets, "Teacher", Silent)
    settings = make_settings("http://127.0.0.1:9/v1", tmp_path, num)
    with (tmp_path / "prompts.jsonl").open("w") as file:
        file.writelines(json.dumps({"prompt": f"Say {number} " * 20}) + "\n" for number in range(num))
    settings["prompts"] = {"files": (str(tmp_path / "prompts.jsonl"),)}
    config = GenerationConfig.model_validate(settings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with DataSet(config, lambda text: None) as made:
        card = made.write(made.ask())
    assert card["records"] == num
    lines = (made.out / "train.jsonl").open("rb")
    assert json.loads(next(iter(lines)))["id"]
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


@pytest.mark.slow
def test_memory_is_bounded_with_a_hundred_thousand_prompts(tmp_path, monkeypatch):
    """A kilobyte a prompt at most: names and places, no texts."""
    grow(2_000, tmp_path / "first", monkeypatch)  # what is loaded once
    assert grow(100_000, tmp_path / "second", monkeypatch) < 100
