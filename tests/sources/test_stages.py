"""The records of each stage of a run: any form and file, checked once, refused lines kept, and told apart by their
fingerprint.
"""

from __future__ import annotations

import gc
import gzip
import json
import pickle
import typing
from pathlib import Path

import pytest

from kd.config.load import load_config
from kd.config.registries import FORMATS
from kd.config.schema import TrainFiles
from kd.outputs import OutputError
from kd.records.checks import DataError
from kd.records.files import write_records
from kd.sources.demo import corpus as demo
from kd.sources.demo.source import DemoSource
from kd.sources.file_index import RecordIndex
from kd.sources.stages import describe, run_sources, sources_beside, stage_source

CONFIG = """\
run: {{name: r, output_dir: {out}/runs}}
tokenizer: {{path: nowhere}}
student: {{architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 4, dtype: fp32}}
data:
  demo: {{num_records: 40}}
  stages:
    - {{name: a, train: [{out}/a.jsonl, {{files: "{out}/b*", weight: 2}}], max_length: 512, until: {{steps: 1}}}}
    - {{name: b, mix: {{chat: 1}}, max_length: 512, until: {{steps: 1}}}}
    - {{name: c, train: [{out}/a.jsonl, {{files: "{out}/b*", weight: 2}}], max_length: 1024}}
training: {{steps: 5, deepspeed: ds_configs/zero3_cpu.json}}
"""  # noqa: E501


@pytest.fixture
def config(tmp_path):
    """A function from overrides to the configuration, over a plain file with a broken line, a compressed one and an
    array.
    """
    made = [demo.record("chat", index) for index in range(6)]
    write_records(tmp_path / "a.jsonl", made[:2])
    with (tmp_path / "a.jsonl").open("a") as out:
        out.write(
            'broken\n{"query": "q", "tools": [{"name": "f", "parameters": {}}], "answers": [{"name": "f", '
            '"arguments": {}}]}\n'
        )
    write_records(tmp_path / "b", made[2:4])
    (tmp_path / "b1.jsonl.gz").write_bytes(gzip.compress((tmp_path / "b").read_bytes()))
    (tmp_path / "b").unlink()
    (tmp_path / "b2.json").write_text(json.dumps([vars(record) for record in made[4:]]))
    (tmp_path / "run.yaml").write_text(CONFIG.format(out=tmp_path))
    return lambda *overrides: load_config(tmp_path / "run.yaml", overrides)


def sources_of(config):
    return run_sources(config.data, config.run)


def ids(source) -> list[str]:
    return [source[index].id for index in range(len(source))]


def test_stages_read_what_verify_reads_and_share_what_they_share(config, tmp_path):
    found = sources_of(config("data.max_bad_fraction=0.2"))
    first, second, third = found.stages
    assert first is third and isinstance(second, DemoSource) and len(second) == 40
    chats = [f"train-chat-0-{index}" for index in range(6)]
    assert ids(first) == [*chats[:2], f"{tmp_path}/a.jsonl:4", *sorted(chats[2:] * 2)]
    assert first[2].messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
    assert found.num_refused == 1 and found.quarantine == tmp_path / "runs" / "r" / "refused.jsonl"
    (refused,) = map(json.loads, found.quarantine.read_text().splitlines())
    assert (refused["file"], refused["line"], refused["raw"]) == (
        f"{tmp_path}/a.jsonl",
        3,
        "broken\n",
    ) and "not a line of JSON" in refused["reason"]
    assert describe(config().data.stages[0]) == f"{tmp_path}/a.jsonl, {tmp_path}/b*" and "demo corpus" in describe(
        config().data.stages[1]
    )


def test_another_program_has_its_own_files_of_the_same_records(config, tmp_path):
    """Capture and its verification may run beside the training of the same configuration."""
    allowed = config("data.max_bad_fraction=0.2")
    training = sources_of(allowed)
    folder, all_ids = training.quarantine.parent, ids(training.stages[0])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for kept in (None, tmp_path / "cache" / "refused.jsonl"):
        others = [sources_beside(allowed.data, where, kept) for where in (folder, tmp_path / "cache", folder)]
        assert all(
            ids(other.stages[0]) == all_ids and other.stages[0].fingerprint() == training.stages[0].fingerprint()
            for other in others
        )
        del others
        gc.collect()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and ids(training.stages[0]) == all_ids
    kept = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert kept == ["refused.jsonl", "refused.jsonl.earlier"]


def test_records_that_are_no_line_of_a_file_go_with_the_process_that_checked_them(config):
    found = sources_of(config("data.max_bad_fraction=0.2"))
    folder, all_ids = found.quarantine.parent, ids(found.stages[0])
    spool, refused = sorted(path.name for path in folder.iterdir())
    assert spool.startswith(".records-") and refused == "refused.jsonl"
    for _ in range(2):  # another rank's, or a worker's, which ends before
        other = pickle.loads(pickle.dumps(found.stages[0]))
        assert ids(other) == all_ids and other.fingerprint() == found.stages[0].fingerprint()
        del other
        gc.collect()
    found = None
    gc.collect()
    assert [path.name for path in folder.iterdir()] == ["refused.jsonl"]


def test_by_default_the_first_bad_line_stops_the_run(config, tmp_path):
    with pytest.raises(
        DataError,
        match=rf"^{tmp_path}/a\.jsonl:3: .*1 of 3 lines are refused, more than max_bad_fraction 0 allows; they are in "
        r".*kept\.jsonl",
    ):
        sources_of(config(f"data.quarantine={tmp_path}/kept.jsonl"))
    assert json.loads((tmp_path / "kept.jsonl").read_text())["line"] == 3
    (tmp_path / "a.jsonl").write_text("")
    assert sources_of(config(f"data.quarantine={tmp_path}/kept.jsonl")).num_refused == 0
    assert not (tmp_path / "kept.jsonl").exists()  # what it held was of the run before


def test_the_fraction_is_of_the_lines_of_all_files(config):
    """Of the first stage's first file it is 1 of 4."""
    with pytest.raises(DataError, match="1 of 8 lines are refused"):
        sources_of(config("data.max_bad_fraction=0.1"))
    assert sources_of(config("data.max_bad_fraction=0.125")).num_refused == 1


def test_one_stage_alone_leaves_nothing_behind(config, tmp_path):
    source = stage_source(config("data.max_bad_fraction=0.2").data, 0)
    assert len(source) == 11 and not (tmp_path / "runs").exists()


def test_a_named_form_is_the_only_one_read(config, tmp_path):
    with pytest.raises(DataError, match=r"a\.jsonl:1: "):
        sources_of(config(f"data.stages.0.train=[{{files: {tmp_path}/a.jsonl, format: xlam}}]"))


def test_every_form_can_be_named():
    (choice,) = typing.get_args(typing.get_args(TrainFiles.model_fields["format"].annotation)[0])[1:]
    assert tuple(choice.names()) == FORMATS.names()


def test_the_fingerprint_is_of_the_records_and_not_of_their_place(config, tmp_path):
    allowed = "data.max_bad_fraction=0.25"

    def of(*train: str) -> str:
        overrides = [f"data.stages.0.train=[{', '.join(train)}]"] if train else []
        return stage_source(config(allowed, *overrides).data, 0).fingerprint()

    a, b = f"{tmp_path}/a.jsonl", f'"{tmp_path}/b*"'
    whole = of()
    assert whole == of() and len(whole) == 64
    different = [
        of(a),
        of(b),
        of(a, b),
        of(b, a),
        of(a, f"{{files: {b}, weight: 3}}"),
        of(f"{{files: {a}, weight: 0.5}}", b),
    ]
    assert len({whole, *different}) == 7
    (tmp_path / "c.jsonl").write_bytes(Path(a).read_bytes())
    assert of(f"{tmp_path}/c.jsonl") == of(a)
    (tmp_path / "c.jsonl").write_bytes(Path(a).read_bytes().replace(b"broken", b'{"mended": 0}'))
    assert of(f"{tmp_path}/c.jsonl") == of(a)  # refused either way
    (tmp_path / "c.jsonl").write_bytes(Path(a).read_bytes().replace(b'"q"', b'"p"'))
    assert of(f"{tmp_path}/c.jsonl") != of(a)


def test_a_fraction_of_the_records_is_the_same_for_every_seed(config, tmp_path):
    """Else a cache would serve one seed."""
    files = f'data.stages.0.train=[{{files: "{tmp_path}/b*", weight: 0.5}}]'
    assert len({stage_source(config(files, f"run.seed={seed}").data, 0).fingerprint() for seed in range(4)}) == 1


def test_the_demo_corpus_has_a_fingerprint_of_its_parameters_and_of_what_they_make(monkeypatch):
    made = {
        (n, seed, kind): DemoSource(n, seed, {kind: 1.0}).fingerprint()
        for n in (50, 51)
        for seed in (1, 2)
        for kind in ("chat", "single")
    }
    assert len(set(made.values())) == 8 and made[50, 1, "chat"] == DemoSource(50, 1, {"chat": 1.0}).fingerprint()
    monkeypatch.setattr(demo, "_CHAT", (("Hi", "Hello"),))
    assert (
        DemoSource(50, 1, {"chat": 1.0}).fingerprint() != made[50, 1, "chat"]
        and DemoSource(50, 1, {"single": 1.0}).fingerprint() == made[50, 1, "single"]
    )


def test_no_record_at_all_is_refused(tmp_path):
    from kd.records.files import DataFiles

    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no record in any of the data files"):
        RecordIndex([DataFiles(str(tmp_path / "e.jsonl"))])


@pytest.mark.parametrize("content", [b"run: {name: r}\n", b'{"id": "1", "messages": []}\n', b"\x00\xff"])
def test_a_quarantine_never_takes_the_place_of_a_file_that_it_did_not_write(config, tmp_path, content):
    (tmp_path / "mine").write_bytes(content)
    with pytest.raises(
        OutputError, match=r"data\.quarantine: .*mine is there already and is not known as a file of refused records"
    ):
        sources_of(config(f"data.quarantine={tmp_path}/mine", "data.max_bad_fraction=0.2"))
    assert (tmp_path / "mine").read_bytes() == content


def test_a_users_file_in_the_runs_folder_is_read_and_kept(config, tmp_path):
    """Earlier versions wrote records-0.jsonl there, whatever it was."""
    folder = sources_of(config("data.max_bad_fraction=0.2")).quarantine.parent
    (folder / "records-0.jsonl").write_text("mine")
    sources_of(config("data.max_bad_fraction=0.2"))
    gc.collect()
    assert (folder / "records-0.jsonl").read_text() == "mine"
