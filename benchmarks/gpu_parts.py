"""Parts of the GPU suite (gpu_suite.py): what each runs, for how long at most, and what it needs. In order of worth."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import NamedTuple

TRAIN_NEEDS = (
    "transformers",
    "accelerate",
    "deepspeed",
    "safetensors",
    "pydantic",
    "yaml",
    "json_repair",
    "jsonschema",
    "tqdm",
    "psutil",
)
TEST_PROCESSES = 6  # the tests' time is the compiler's: processes share the GPU and Triton's cache
MOST_MINUTES = 9.0  # of a part: where a command may run for ten minutes only, each part fits into one


class Part(NamedTuple):
    """One part of the suite."""

    name: str
    minutes: float  # at most
    commands: list[list[str]]  # run at the same time; {minutes} in an argument becomes what the part has
    env: dict[str, str]
    needs: tuple[str, ...] = ()  # packages, by import name
    tools: tuple[str, ...] = ()  # programs


def parts(work: Path, rehearse: bool) -> list[Part]:
    """List the parts, whose files go to the folder `work`. A rehearsal takes the same commands at tiny sizes."""
    python = sys.executable

    def script(name: str, *arguments: str, out: str = "") -> list[str]:
        into = str(work / f"{out or name}.json")
        return [python, f"benchmarks/{name}.py", "--out", into, "--minutes", "{minutes}", *arguments]

    def losses(out: str, *arguments: str) -> list[list[str]]:
        tiny = ("--vocab", "500", "--rows", "4", "--seconds", "0.02", "--static") if rehearse else ()
        return [script("loss_kernels", *arguments, *tiny, out=out)]

    interpreted = {"TRITON_INTERPRET": "1"} if rehearse else {}
    target = ("--vocab", "151936", "--rows", "8192")
    split = (*target, "--families", "dense", "--methods", "ours", "--gate-rows", "2048")
    # Names before results (pytest.ini has a -q), and where a test that hangs hangs. One file that lacks a package must
    # not cost the others.
    tests = [python, "-m", "pytest", "-vv", "-rs", "-o", "faulthandler_timeout=100", "-p", "no:cacheprovider"]
    tests += ["tests/gpu", "--continue-on-collection-errors"]
    # In a rehearsal those are imported and skipped, and something that needs no GPU runs beside them.
    tests += ["tests/kernels/test_dense_launches.py::test_layouts"] if rehearse else []
    processes = 2 if rehearse else TEST_PROCESSES
    sharded = [[*tests, f"--junitxml={work}/tests_{i}.xml", f"--shard={i}/{processes}"] for i in range(processes)]
    steps = ["training.steps=2", "optimizer.warmup_steps=1", "evaluation.num_records=2", "evaluation.max_new_tokens=8"]
    if not rehearse:
        steps = ["training.steps=30", "optimizer.warmup_steps=5", "training.log_every=5", "evaluation.num_records=8"]
    train = [python, "launch/train.py", "--config", "configs/demo.yaml", "--fresh"]
    for setting in (*steps, f"run.output_dir={work / 'train'}"):
        train += ["--set", setting]
    checked = ("--parity-only", "--methods", "ours", "--rows", "8192", "--gate-rows", "8192")
    rehearsed = ["--rehearse"] * rehearse
    compared = shlex.split("--size gpu --vocab 151936 --length 1024 --batch 8 --rounds 2 --seconds 120")
    if rehearse:
        compared = shlex.split("--size tiny --vocab 300 --length 16 --warmup 1 --steps 1 --rounds 1 --methods ce eager")
    return [
        Part("timings", 8.0, losses("timings", *target, "--seconds", "0.5"), {}),
        Part("parity", 4.0, losses("parity", *checked), {}),
        Part("tune", 5.0, [script("tune", *rehearsed)], interpreted),
        Part("counters", 4.0, [script("counters", *rehearsed)], interpreted, tools=() if rehearse else ("ncu",)),
        Part("tests", 7.0, sharded, {}),
        Part("train", 4.0, [train], {}, TRAIN_NEEDS),
        Part("streamed", 2.0, losses("streamed", *split), {"SPANWISE_DENSE_LAUNCH": "streamed"}),
        Part("cooperative", 2.0, losses("cooperative", *split), {"SPANWISE_DENSE_LAUNCH": "cooperative"}),
        Part("peers", MOST_MINUTES, [script("peers", *compared)], {}, TRAIN_NEEDS),
        Part("widths", MOST_MINUTES, losses("widths"), {}),
    ]
