"""The key is in the environment and in the requests, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KEY = "sk-Zebra7QuartzViolin"


def test_a_process_writes_its_key_nowhere(tmp_path):
    """Root logging at DEBUG, tracebacks with the values of all variables, a server that repeats the key in every place
    it can.
    """
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("tell_nothing.py")), str(tmp_path)],
        capture_output=True,
        timeout=120,
        env={**os.environ, "ENDPOINT_KEY": KEY},
        check=False,
    )
    (tmp_path / "stdout").write_bytes(ran.stdout)
    (tmp_path / "stderr").write_bytes(ran.stderr)
    found = {path.name: raw for path in tmp_path.rglob("*") if path.is_file() for raw in [path.read_bytes()]}
    assert ran.returncode == 0 and "done" in found, ran.stderr.decode()[-2000:]
    assert {name for name, raw in found.items() if KEY.encode() in raw} == set()
    assert b"DEBUG" in found["debug.log"] and b"the key is not accepted (status 401)" in found["stdout"]
    assert b"[key]" in found["stdout"]  # a server's words are shown, without it
