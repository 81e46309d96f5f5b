"""One process that captures the demo teacher twice, from itself and from the loopback endpoint over it, and trains on
the latter.

    python endpoint_capture_job.py FOLDER CONTEXT LESS    FOLDER/run.yaml and its records are there; CONTEXT: tokens the
                                                          server takes

It writes FOLDER/live, FOLDER/endpoint, FOLDER/retried and FOLDER/whole (caches), and result.json: what was sent and
said, and the lines of training. `retried` lacks what CONTEXT is too short for, is asked for again from a server that
takes LESS, and then from one that takes all; `whole` has only met that one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

tests = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(tests.parent), str(tests), str(tests / "distributed")]

import torch  # noqa: E402
from scenarios import run  # noqa: E402

from helpers.demo_server import demo_server  # noqa: E402
from kd.config.load import load_config  # noqa: E402
from kd.teacher.capture.capture import capture  # noqa: E402
from kd.teacher.capture.errors import CaptureError  # noqa: E402
from kd.teacher.capture.verify import verify_cache  # noqa: E402

folder = Path(sys.argv[1])
config, longest = str(folder / "run.yaml"), int(sys.argv[2])
torch.set_num_threads(1)


def again(name: str, context: int, max_missing: float = 0.2, **options) -> dict:
    """A capture in one shard from a server of its own."""
    with demo_server(max_model_len=context) as (server, _, _):
        overrides = [
            f"teacher.cache.path={folder / name}",
            f"teacher.endpoint={{url: {server.url}, model: demo, max_missing: {max_missing}}}",
        ]
        try:
            said = capture(load_config(config, overrides), **options)._asdict()
        except CaptureError as error:
            said = {"error": str(error)}
        return said | {
            "prompts": [request["prompt"] for request in server.requests],
            "bytes": (folder / name / "shard-000000.safetensors").read_bytes().hex(),
        }


with demo_server(max_model_len=longest) as (server, _, _):
    endpoint = f"teacher.endpoint={{url: {server.url}, model: demo, concurrency: 4, max_missing: 0.2}}"
    ways = {"live": [], "endpoint": [endpoint]}
    ways = {name: [f"teacher.cache.path={folder / name}", *overrides] for name, overrides in ways.items()}
    captured = {
        name: capture(load_config(config, overrides), shard_rows=64)._asdict() for name, overrides in ways.items()
    }
    prompts = [request["prompt"] for request in server.requests]
    problems = verify_cache(load_config(config, ways["endpoint"]), 3)
retries = [
    again("retried", longest),
    again("retried", longest, 0.05),
    again("retried", int(sys.argv[3]), retry_missing=True),
    again("retried", longest + 1, retry_missing=True),
    again("retried", longest + 1, retry_missing=True),
    again("whole", longest + 1),
]
result = run(
    {"name": "endpoint", "config": config, "overrides": ways["endpoint"], "optimizer": "adamw"}, folder
)  # the server is gone
found = {
    "captured": captured,
    "prompts": prompts,
    "problems": problems,
    "retries": retries,
    "trained": {key: result[key] for key in ("lines", "said", "result")},
}
(folder / "result.json").write_text(json.dumps(found))
