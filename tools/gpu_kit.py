"""Wheels that a bare GPU machine lacks for benchmarks/gpu_suite.py, in a folder to carry there.

    python tools/gpu_kit.py                      into build/gpu_kit, for CPython 3.12 on x86-64 (`make gpu-kit`)
    python tools/gpu_kit.py --python 3.11        for another

The machine is taken to have torch, triton, transformers, accelerate, numpy, safetensors, PyYAML, tqdm, psutil, regex,
tensorboard, matplotlib and pytest, and no network. DeepSpeed is published as a source archive alone: its wheel is built
here, without compiled operators. There, `gpu_suite.py --wheels build/gpu_kit` installs them one by one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# With what they need, each: --no-deps leaves torch and its gigabytes out.
WHEELS = (
    "annotated-types",
    "hjson",
    "json-repair==0.64.6",
    "jsonschema==4.26.0",
    "jsonschema-specifications",
    "liger-kernel",
    "pydantic==2.14.3",
    "pydantic-core",  # compiled: of that Python; its version is what pydantic pins
    "referencing",
    "rpds-py",  # likewise
    "typing-inspection",
)
BUILT = ("deepspeed==0.19.8",)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64", "any")


def pinned_core(folder: Path) -> str:
    """Return the requirement of pydantic-core that the pydantic wheel in a folder pins."""
    (wheel,) = folder.glob("pydantic-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    found = [line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("requires-dist: pydantic-core")]
    return found[0].replace(" ", "")


def download(requirement: str, folder: Path, python: str) -> str:
    """Download one wheel. Returns "" or what pip said."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "-d", str(folder), requirement]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    return _said(command, {})


def build(requirement: str, folder: Path) -> str:
    """Build one wheel from its source archive. Returns "" or what pip said."""
    # In an empty folder, where no module of ours is taken for one of the build's.
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), requirement]
        return _said(command, {"DS_BUILD_OPS": "0"}, empty)


def _said(command: list[str], env: dict[str, str], cwd: str | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env, cwd=cwd)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit {done.returncode}")[-400:]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 where every wheel is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_kit")
    parser.add_argument("--python", default="3.12", help="of the GPU machine: 3.12")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for wheel in chosen.out.glob("*.whl"):  # two versions of one package would not both install
        wheel.unlink()
    failures = {}
    for requirement in WHEELS:
        wanted = pinned_core(chosen.out) if requirement == "pydantic-core" else requirement
        failures[wanted] = download(wanted, chosen.out, chosen.python)
    for requirement in BUILT:
        failures[requirement] = build(requirement, chosen.out)
    failures = {requirement: said for requirement, said in failures.items() if said}
    found = sorted(chosen.out.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in found) / 2**20
    print(f"{len(found)} wheels, {size:.1f} MiB, in {chosen.out}")
    for requirement, said in failures.items():
        print(f"missing: {requirement}: {said}", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
