"""A process that uses an endpoint with a key, in every way that goes wrong, and logs and prints all that it can.

    python tell_nothing.py FOLDER        the key is in the environment as ENDPOINT_KEY

It writes FOLDER/done when nothing is left to try. The test that starts it looks for the key in all it wrote.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path

folder, tests = Path(sys.argv[1]), Path(__file__).resolve().parents[1]
sys.path[:0] = [str(tests.parent), str(tests)]
logging.basicConfig(level=logging.DEBUG, filename=folder / "debug.log")

from helpers.endpoint_cases import micro_batches, opened, table_logits  # noqa: E402
from helpers.endpoint_server import Server, body, changed, cut_body, reset_in_body, status  # noqa: E402
from kd.config.load import dump_config, load_config  # noqa: E402
from kd.endpoint.connections import Reply  # noqa: E402
from kd.endpoint.http import ApiKey, EndpointError  # noqa: E402

key = os.environ["ENDPOINT_KEY"]
SAID = f"you sent Authorization: Bearer {key}"  # what a server may repeat
CASES = {
    "all is well": [None] * 3,
    "not accepted": [None, body(f'{{"error": "{SAID}"}}'.encode(), code=401)],
    "forbidden": [None, status(403, message=SAID)],
    "repeated in an error": [None] + [status(500, message=SAID)] * 20,
    "repeated in a refusal": [None, status(400, message=SAID)],
    "repeated in a status line that is unknown": [None, status(418, message=SAID)],
    "repeated in a page": [None] + [body(SAID.encode(), "text/html; " + key)] * 20,
    "repeated in broken JSON": [None] + [body(SAID.encode())] * 20,
    "repeated in the answer": [None, body(f'{{"choices": "{key}"}}'.encode())]
    + [body(f'{{"{key}": 1}}'.encode())] * 20,
    "repeated as a token": [None, changed(lambda c: c["prompt_token_ids"].__setitem__(1, key))] * 2,
    "repeated as an entry": [None, changed(lambda c: c.update(prompt_token_ids=None, prompt_logprobs=[{key: {}}] * 9))]
    * 2,
    "repeated as a log-prob": [
        None,
        changed(lambda c: [e.update(logprob=key) for t in c["prompt_logprobs"][1:] for e in t.values()]),
    ]
    * 2,
    "repeated as a token's text": [
        None,
        changed(lambda c: [e.update(decoded_token=key) for t in c["prompt_logprobs"][1:] for e in t.values()]),
    ]
    * 2,
    "a redirect with it": [None, status(302, {"Location": f"http://{key}.example/{key}?key={key}"})],
    "a redirect to nothing": [None, status(302, {"Location": f"http://[{key}"})],
    "reset": [None] + [reset_in_body] * 20,
    "cut": [None] + [cut_body] * 20,
}


def show(error: BaseException) -> None:
    print(repr(error), error, error.__context__, error.__cause__)
    for chained in (error, error.__context__, error.__cause__):
        if chained is not None:
            print("".join(traceback.TracebackException.from_exception(chained, capture_locals=True).format()))


def attempt(faults) -> None:
    """No variable in here holds the key: tracebacks show them all."""
    with Server(table_logits, faults=faults, key=os.environ.get("ENDPOINT_KEY")) as server:
        said: list[str] = []
        try:
            teacher = opened(server, said=said, api_key_env="ENDPOINT_KEY", retries=2, decode=str)
            try:
                for micro in micro_batches(2, size=1):
                    teacher.target_rows(micro)
                    print(teacher.missing(micro))
                for part in (teacher, teacher._records, teacher._records.wire, teacher._records.wire._connections):
                    print(part, vars(part))
            finally:
                teacher.close()
        except EndpointError as stopped:
            show(stopped)
        print(said)
        assert all(
            "ENDPOINT_KEY" in os.environ and h["Authorization"] == f"Bearer {os.environ['ENDPOINT_KEY']}"
            for h in server.headers
        )


for name, faults in CASES.items():
    print("---", name)
    attempt(faults)
for wrong in (f"{key}\n{key}", f"{key} x", f"{key}\u00e9", "", None):
    print("--- a key that is none")
    os.environ.pop("ENDPOINT_KEY")
    if wrong is not None:
        os.environ["ENDPOINT_KEY"] = wrong
    attempt([])
os.environ["ENDPOINT_KEY"] = key

print("--- by themselves", ApiKey("ENDPOINT_KEY"), Reply(500, {"x": key}, SAID.encode()))
config = load_config(
    tests.parent / "configs" / "demo.yaml",
    [
        "teacher.cache={path: c, kind: topk}",
        "loss.temperature.start=1.0",
        "teacher.endpoint={url: http://127.0.0.1:1/v1, model: m, api_key_env: ENDPOINT_KEY}",
    ],
)
(folder / "config.yaml").write_text(dump_config(config))
print(repr(config))
(folder / "done").touch()
