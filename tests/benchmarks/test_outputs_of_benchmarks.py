"""Files that benchmarks write: what no benchmark made stays, and one program at a time adds to a file of results."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from benchmarks import bfcl_agreement, measure, proof

COMMANDS = {
    "bfcl_agreement": (bfcl_agreement.main, ["--python", "/bin/false"]),
    "proof": (proof.main, ["--show"]),
    "proof, listed": (proof.main, ["--list"]),
}


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", ""])
def test_a_number_of_something_is_1_or_more(text):
    """Zeros ended in divisions by zero."""
    with pytest.raises(argparse.ArgumentTypeError, match="1 or more"):
        measure.count(text)
    assert measure.count("12") == 12


@pytest.mark.parametrize(("python", "said"), [("/no/python", "No such file"), ("/bin/false", "exit code 1")])
def test_an_interpreter_that_cannot_judge_is_named(python, said):
    with pytest.raises(SystemExit, match=f"error: --python: .*{python}.*{said}.*bfcl-eval"):
        bfcl_agreement.ask(python, "entries")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("content", [b"mine", b'{"rows": [1]}', b'{"a": 1}', b'{"rows": [{"key": 1, "co'])
def test_a_file_that_no_benchmark_wrote_stays(tmp_path, monkeypatch, command, content):
    main, arguments = COMMANDS[command]
    (tmp_path / "out.json").write_bytes(content)
    monkeypatch.setattr(sys, "argv", [command, *arguments, "--out", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit, match="out.json is there already and is not known as a benchmark's results"):
        main()
    assert (tmp_path / "out.json").read_bytes() == content


def test_a_plot_that_no_benchmark_drew_stays(tmp_path, monkeypatch):
    (tmp_path / "out.svg").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["proof", "--show", "--out", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit, match="out.svg is there already"):
        proof.main()
    assert (tmp_path / "out.svg").read_text() == "mine"


def test_results_of_every_benchmark_are_known(tmp_path):
    for path in (measure.ROOT / "benchmarks" / "results").glob("*.json"):
        assert measure.is_results(path), path
    (tmp_path / "proof.json").write_text(json.dumps({"rows": [{"key": "a", "code": "b", "scores": {}}]}))
    assert measure.is_results(tmp_path / "proof.json")


def test_a_second_program_does_not_write_over_the_rows_of_the_first(tmp_path):
    """Each had read the rows before the other added its own, which were then lost."""
    out = tmp_path / "out.json"
    measure.check_out(out)
    program = (
        f"import sys; sys.path.insert(0, {str(measure.ROOT)!r}); from pathlib import Path; "
        "from benchmarks import measure; measure.check_out(Path(sys.argv[1]), alone=len(sys.argv) < 3)"
    )
    second = subprocess.run([sys.executable, "-c", program, str(out)], capture_output=True, text=True)
    assert second.returncode == 1 and "error: --out: " in second.stderr and "is being written by" in second.stderr
    assert subprocess.run([sys.executable, "-c", program, str(out), "reads"]).returncode == 0


def test_a_full_disk_is_told_and_the_last_results_stay(tmp_path, monkeypatch):
    def fill(path, content):
        raise OSError(28, "No space left on device", str(path))

    measure.write_json(tmp_path / "out.json", {"what": 1, "results": 2})
    monkeypatch.setattr(measure, "publish", fill)
    with pytest.raises(SystemExit, match="error: .*out.json cannot be written: the disk is full"):
        measure.write_json(tmp_path / "out.json", {"what": 1, "results": 3})
    assert json.loads((tmp_path / "out.json").read_text())["results"] == 2
