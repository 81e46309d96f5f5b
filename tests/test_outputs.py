"""Outputs: each place that a program writes is free, or known as its own, before it begins; no input is one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import measure
from kd.folders.lock import FolderLock
from kd.outputs import Output, OutputError, check_outputs, check_writable
from kd.paths import expand_path, identify
from kd.preflight.tally import Tally
from kd.records.checks import DataError
from kd.records.files import write_records
from kd.run_folder import RunFolder, RunFolderError
from kd.sources.demo import corpus as demo
from kd.sources.inputs import find_shared
from kd.teacher.cache.spec import CacheError
from kd.teacher.cache.writer import check_folder
from kd.training.log import RunLog
from launch import evaluate, verify


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    write_records(path, [demo.record("single", 1)])
    return path


@pytest.fixture
def check(data, tokenizer_folder, capsys):
    """A function from options of verify to its exit code and what it says."""

    def check(*options):
        command = ["--data", str(data), "--tokenizer", str(tokenizer_folder), *map(str, options)]
        try:
            code = verify.main(command)
        except SystemExit as error:
            code = error.code
        return code, "".join(capsys.readouterr())

    return check


def everything(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


PLACES = {
    "--fix": ("--fix", "mine.jsonl", "mine.jsonl"),
    "--spans": ("--spans", "mine.jsonl", "mine.jsonl"),
    "--out, summary": ("--out", "out", "out/verify.json"),
    "--out, page": ("--out", "out", "out/verify.html"),
    "--out, refused": ("--out", "out", "out/bad.jsonl"),
}


@pytest.mark.parametrize("kind", ["file", "records", "folder"])
@pytest.mark.parametrize("place", PLACES)
def test_verify_leaves_what_it_did_not_write(place, kind, check, data, tmp_path):
    option, given, foreign = PLACES[place]
    foreign = tmp_path / "there" / foreign
    foreign.parent.mkdir(parents=True)
    if kind == "folder":
        foreign.mkdir()
        (foreign / "inside").write_text("mine")
    else:
        foreign.write_bytes(b"mine" if kind == "file" else data.read_bytes())
    before = everything(tmp_path)
    code, said = check(option, tmp_path / "there" / given)
    assert code == 2 and f"{option}: {foreign} is " in said and "Traceback" not in said
    assert everything(tmp_path) == before


def test_verify_replaces_what_it_wrote_once_all_is_read(check, data, tmp_path):
    options = ["--spans", tmp_path / "spans.jsonl", "--out", tmp_path / "out"]
    assert check(*options)[0] == 0
    with data.open("a") as out:
        out.write("broken\n")
    assert check(*options)[0] == 1
    assert len((tmp_path / "spans.jsonl").read_text().splitlines()) == 2
    assert len((tmp_path / "out" / "bad.jsonl").read_text().splitlines()) == 1
    assert check(*options)[0] == 1 and not list(tmp_path.rglob(".*.part"))


SPELLINGS = {
    "the same": lambda data: data,
    "dotted": lambda data: data.parent / "." / "x" / ".." / data.name,
    "hard link": lambda data: (os.link(data, data.parent / "hard"), data.parent / "hard")[1],
    "symbolic link": lambda data: ((data.parent / "soft").symlink_to(data), data.parent / "soft")[1],
    "linked folder": lambda data: ((data.parent / "dir").symlink_to(data.parent), data.parent / "dir" / data.name)[1],
}


@pytest.mark.parametrize("content", ["records", "nothing"])
@pytest.mark.parametrize("option", ["--fix", "--spans"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_input_is_no_output_by_whatever_name(spelling, option, content, check, data):
    if content == "nothing":
        data.write_bytes(b"")  # an empty file could be replaced, were it not read
    (data.parent / "x").mkdir()
    before = data.read_bytes()
    code, said = check(option, SPELLINGS[spelling](data))
    assert code == 2 and "is what --data reads: name another file" in said and data.read_bytes() == before


@pytest.mark.parametrize("second", ["{}/a.jsonl", "{}/./a.jsonl", "{}/link/a.jsonl", "{}/out/bad.jsonl"])
def test_two_outputs_are_two_files(second, check, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    options = ["--fix", tmp_path / "a.jsonl", "--spans", second.format(tmp_path), "--out", tmp_path / "out"]
    code, said = check(*options)
    assert code == 2 and " writes: name another file" in said and not (tmp_path / "a.jsonl").exists()


def test_a_place_that_takes_no_file_is_refused_before_the_tokenizer_is_read(check, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for option, path in (("--out", "file"), ("--out", "file/deeper"), ("--fix", "file/clean.jsonl")):
        code, said = check(option, tmp_path / path)
        assert code == 2 and f"{tmp_path}/file is a file; name another place" in said
    code, said = check("--out", "/proc/nowhere")
    assert code == 2 and "--out: /proc/nowhere is no folder that can be written" in said and "Traceback" not in said


def test_a_check_that_ends_early_leaves_what_an_earlier_one_wrote(check, data, tmp_path, monkeypatch):
    options = ["--spans", tmp_path / "spans.jsonl", "--out", tmp_path / "out"]
    assert check(*options)[0] == 0
    before = everything(tmp_path)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, said = check(*options, "--fix", tmp_path / "clean.jsonl")
    assert code == 1 and "cannot be written: the disk is full" in said and "make room" in said
    assert everything(tmp_path) == before


def test_a_pipe_is_written_to_as_it_is(check, tmp_path):
    assert check("--spans", "/dev/null", "--fix", "/dev/null")[0] == 2  # one place, twice
    assert check("--spans", "/dev/null")[0] == 0 and os.path.exists("/dev/null")


def test_a_link_stays_and_its_target_is_replaced(check, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "there" / "spans.jsonl")
    for _ in range(2):
        assert check("--spans", tmp_path / "link.jsonl")[0] == 0
    assert (tmp_path / "link.jsonl").is_symlink() and (tmp_path / "there" / "spans.jsonl").stat().st_size


@pytest.mark.parametrize("name", ["evaluation.json", "cases.jsonl"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_evaluate_leaves_what_it_did_not_write(name, kind, data, tmp_path, teacher_folder, capsys, monkeypatch):
    foreign = tmp_path / "out" / name
    foreign.parent.mkdir()
    foreign.mkdir() if kind == "folder" else foreign.write_text('{"mine": 1}')
    monkeypatch.setattr(evaluate, "make_ready", lambda *_: pytest.fail("a model was loaded"))
    before = everything(tmp_path)
    command = ["--model", str(teacher_folder), "--data", str(data), "--out"]
    assert evaluate.main([*command, str(tmp_path / "out")]) == 1
    assert f"error: --out: {foreign} is " in capsys.readouterr().err and everything(tmp_path) == before
    assert evaluate.main([*command, str(data)]) == 1 and "is a file; name another place" in capsys.readouterr().err


def test_one_file_for_two_splits_is_refused(data, tmp_path, teacher_folder, capsys):
    os.link(data, tmp_path / "again.jsonl")
    command = ["--model", str(teacher_folder), "--data", f"a={data}", "--data", f"b={tmp_path}/again.jsonl"]
    with pytest.raises(SystemExit):
        evaluate.main([*command, "--out", str(tmp_path / "out")])
    assert "data.jsonl is given twice" in capsys.readouterr().err


def test_identity_is_of_the_file(tmp_path):
    (tmp_path / "a").write_text("")
    (tmp_path / "b").write_text("")
    (tmp_path / "link").symlink_to("not-yet")
    assert identify(tmp_path / "a") != identify(tmp_path / "b")
    assert identify(tmp_path / "link") == identify(tmp_path / "x" / ".." / "not-yet") != identify(tmp_path / "other")
    assert identify(tmp_path / "no" / "a") != identify(tmp_path / "no" / "b") != identify(tmp_path / "b")


def test_homes_are_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert [expand_path(text) for text in ("~", "~/a", "a/~", "./~")] == ["/home/ada", "/home/ada/a", "a/~", "./~"]
    for text, reason in (("~nobody-of-that-name/x", "no user"), ("a\0b", "NUL byte")):
        with pytest.raises(ValueError, match=reason):
            expand_path(text)


def test_what_a_killed_program_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    from kd.atomic_files import replacing

    left = tmp_path / f".a.json.{'0' * 32}.part"
    left.write_text("half")
    other = tmp_path / ".a.json.part"
    other.write_text("mine")
    with replacing(tmp_path / "a.json") as file:
        file.write(b"whole")
        check_outputs([Output("--out", tmp_path / "a.json", "a file")])
    assert (tmp_path / "a.json").read_text() == "whole" and not left.exists() and other.exists()


def test_a_full_disk_is_found_before_work_begins(tmp_path, monkeypatch):
    class Full:
        def __enter__(self):
            raise OSError(28, "No space left on device")

        def __exit__(self, *unused): ...

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(OutputError, match=r"--out: .* the disk is full \(.* are free\): make room"):
        check_writable("--out", tmp_path)


def test_a_new_file_that_came_meanwhile_stays(check, tmp_path, monkeypatch):
    """As of a second check with the same --fix, which wrote over the first's."""
    add = Tally.add

    def add_late(tally, verified):
        (tmp_path / "fix.jsonl").write_text("of the other")
        add(tally, verified)

    monkeypatch.setattr(Tally, "add", add_late)
    code, said = check("--fix", tmp_path / "fix.jsonl")
    assert code == 1 and f"error: {tmp_path}/fix.jsonl: File exists: move what is there away" in said
    assert (tmp_path / "fix.jsonl").read_text() == "of the other" and "Traceback" not in said
    assert not list(tmp_path.glob(".*.part"))


def test_two_evaluations_do_not_write_over_each_other(data, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    other = FolderLock(tmp_path / "out")
    other.take()
    command = ["--model", str(tmp_path), "--data", str(data), "--out", str(tmp_path / "out")]
    assert evaluate.main(command) == 1
    assert f"error: --out: {tmp_path}/out is in use by process {os.getpid()}" in capsys.readouterr().err
    other.release()
    assert evaluate.main(command) == 1 and not (tmp_path / "out" / ".lock").exists()  # tmp_path is no model
    assert "is in use" not in capsys.readouterr().err


@pytest.fixture
def secret(tmp_path, monkeypatch):
    """A folder that this user may not look into."""
    stat = os.stat

    def refuse(path, *arguments, **options):
        if str(path).startswith(f"{tmp_path}/secret/"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    (tmp_path / "secret").mkdir()
    monkeypatch.setattr(os, "stat", refuse)
    return tmp_path / "secret"


def test_a_folder_without_rights_is_told_in_a_line(secret, check, data, capsys):
    """Each was a traceback."""
    with pytest.raises(SystemExit):
        evaluate.main(["--compare", str(secret / "x.json")])
    assert f"--compare: no such file: {secret}/x.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        verify.main(["--config", str(secret / "x.yaml")])
    assert f"--config: {secret}/x.yaml: no such file" in capsys.readouterr().err
    code, said = check("--fix", secret / "x.jsonl")
    assert code == 2 and f"error: {secret}/x.jsonl: Permission denied: change the rights to it" in said


def test_a_summary_of_another_program_is_foreign(check, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "verify.json").write_text(json.dumps({"ready": True}))
    assert check("--out", tmp_path / "out")[0] == 2


@pytest.mark.parametrize("content", [b"mine", b'{"mine": 1}\n'])
@pytest.mark.parametrize("suffix", [".json", ".png"])
def test_a_benchmark_leaves_what_none_wrote_and_replaces_its_own(tmp_path, content, suffix):
    out = tmp_path / "results.json"
    out.with_suffix(suffix).write_bytes(content)
    with pytest.raises(SystemExit, match="error: --out: .* is there already and is not known as a benchmark"):
        measure.check_out(out, ".png")
    assert out.with_suffix(suffix).read_bytes() == content
    out.with_suffix(suffix).unlink()
    for _ in range(2):
        measure.check_out(out, ".png")
        measure.write_json(out, {"commit": None, "device": {}})
        out.with_suffix(".png").write_bytes(b"plot")


def test_splits_of_one_file_are_refused_and_a_trained_one_is_told(tmp_path, data):
    os.link(data, tmp_path / "again.jsonl")
    stage = SimpleNamespace(train=[SimpleNamespace(files=str(tmp_path / "d*.jsonl"))])
    found = find_shared(
        SimpleNamespace(stages=[stage], evaluation={"a": str(tmp_path / "again.jsonl"), "b": "demo"}, validation={})
    )
    assert len(found) == 1 and "data.evaluation.a is trained on too" in found[0]
    with pytest.raises(DataError, match=r"data.evaluation.b: .* is the file of data.evaluation.a too"):
        find_shared(
            SimpleNamespace(stages=[], evaluation={"a": str(data), "b": str(tmp_path / "again.jsonl")}, validation={})
        )


@pytest.mark.parametrize("name", ["manifest.json", "shard-000000.json", "shard-000001.safetensors"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_cache_leaves_what_none_wrote(tmp_path, name, kind):
    foreign = tmp_path / name
    foreign.mkdir() if kind == "folder" else foreign.write_text('{"mine": 1}')
    with pytest.raises(CacheError, match=f"{name} is there already and no cache's: move it away"):
        check_folder(tmp_path)
    assert foreign.exists()
    with pytest.raises(OutputError, match="teacher.cache.path: .* is no folder that can be written"):
        check_folder(Path("/proc/nowhere") if kind == "folder" else foreign)


def test_metrics_that_cannot_be_kept_stop_no_training(tmp_path, capsys):
    log = RunLog(tmp_path / "gone", 2)
    (tmp_path / "gone").write_text("a file, where the folder was")
    values = {
        "stage": "s",
        "temperature": 1.0,
        "lr": 1.0,
        "grad_norm": 1.0,
        "tokens_per_second": 1.0,
        "memory_gib": 1.0,
    }
    for step in (1, 2):
        log.line({"step": step, **values})
    log.close()
    said = capsys.readouterr().out
    assert said.count("this line of metrics is not kept") == 1 and "training goes on" in said and "step      2" in said


def test_a_runs_inputs_are_none_of_its_outputs(tmp_path):
    folder = RunFolder(tmp_path / "r")
    folder.take()
    for path in ("cases.jsonl", "student/x.jsonl", "student"):
        with pytest.raises((OutputError, RunFolderError), match="choose another run.name|name another file"):
            folder.check_apart([("data.stages.0.train.0", tmp_path / "r" / path)], tmp_path / "refused.jsonl")
    folder.check_apart([("data.stages.0.train.0", tmp_path / "r" / "checkpoints" / "x")], tmp_path / "refused.jsonl")
    folder.release()
