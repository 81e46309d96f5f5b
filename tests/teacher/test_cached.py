"""A cache as a source of the teacher's targets: what it must agree with, and that reading ahead changes nothing and
hides no error.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from kd.batching.fit import FitPolicy
from kd.batching.micro_batch import collate
from kd.batching.steps import StepBatches, StepShape
from kd.config.load import load_config
from kd.models.tokenizer import TokenizerError, load_tokenizer
from kd.models.weight_files import weights_hash
from kd.records.files import write_records
from kd.rendering.encode import encode
from kd.sources.demo import corpus as demo
from kd.sources.stages import run_sources
from kd.teacher.cache.identity import cache_identity, cache_spec, tokenizer_hash
from kd.teacher.cache.reader import CacheReader
from kd.teacher.cache.spec import CacheError, Missing
from kd.teacher.cache.writer import CacheWriter
from kd.teacher.cached import NotCaptured, open_cache
from kd.teacher.capture.rows import split_by_record
from kd.teacher.live import CAPTURED, LiveRows, SparseOptions, open_live, row_seeds
from kd.teacher.model import TeacherModel
from kd.teacher.source import OpenTeacher

CONFIG = """\
run: {{name: t, output_dir: {out}, seed: 3}}
teacher: {{path: {teacher}, dtype: fp32, placement: replicated, cache: {{path: {out}/cache, kind: {kind}, temperatures: [1.0, 2.0]}}}}
student: {{architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, vocab_size: 612}}
data: {{stages: [{{name: a, train: [{out}/records.jsonl], max_length: 600}}]}}
training: {{steps: 4}}
"""  # noqa: E501
CPU = torch.device("cpu")


def stages_of(config):
    return run_sources(config.data, config.run).stages


@pytest.fixture(scope="module")
def records():
    return list(demo.records("train", 6, seed=5, mix={"single": 1, "chat": 1}))


@pytest.fixture(scope="module", params=["sampled", "topk"])
def captured(request, tmp_path_factory, teacher_folder, tokenizer, records):
    """(configuration, micro-batch, the rows that were captured) of a cache with every record but the last, which is
    missing.
    """
    out = tmp_path_factory.mktemp(request.param)
    write_records(out / "records.jsonl", records)
    (out / "run.yaml").write_text(CONFIG.format(out=out, teacher=teacher_folder, kind=request.param))
    config = load_config(out / "run.yaml")
    micro = collate([encode(record, tokenizer) for record in records], tokenizer.pad_token_id)
    cache = config.teacher.cache
    options = SparseOptions(cache.kind, cache.top_k, cache.num_draws, len(tokenizer), config.run.seed)
    rows = LiveRows(TeacherModel(config.teacher, {}, CPU, packed=False), options, cache.temperatures, CPU).target_rows(
        micro
    )
    entries = split_by_record(micro, rows)
    identity = cache_identity(config.teacher, config.data, tokenizer, stages_of(config)) | {
        "seed": "3",
        "batches": "by hand",
    }
    writer = CacheWriter(config.teacher.cache.path, cache_spec(cache, len(tokenizer), has_entropy=True), identity)
    writer.write_shard(0, entries[:3])
    writer.write_shard(1, entries[3:5])
    writer.finish(2, [Missing(micro.keys[5], micro.record_ids[5], "the server refused it")])
    return config, micro, rows


def first(micro, tokenizer, records, *which):
    return collate([encode(records[i], tokenizer) for i in which], tokenizer.pad_token_id)


def quiet(text):
    pass


def open_of(config, tokenizer, say):
    return open_cache(OpenTeacher.for_run(config, {}, tokenizer, CPU, say, stages_of(config)))


def test_what_is_read_is_what_the_teacher_gave_in_any_order(captured, tokenizer, records):
    config, micro, rows = captured
    source = open_of(config, tokenizer, quiet)
    some = first(micro, tokenizer, records, 4, 0, 2)
    at = torch.cat([torch.where(micro.record == i)[0] for i in (4, 0, 2)])
    for temperature in (1.0, 2.0):
        found = source.targets(some, temperature)
        assert torch.equal(found.argmax, rows.argmax[at])
        assert (found.entropy - rows.entropy[at]).abs().max() < 1 / 4096
        if found.kind == "sampled":
            m = (1.0, 2.0).index(temperature)
            width = found.ids.shape[1]
            assert torch.equal(found.ids, rows.ids[m][at][:, :width]) and torch.equal(
                found.probs * 50, rows.counts[m][at][:, :width].float()
            )
    assert len(source.targets(first(micro, tokenizer, records), 1.0).ids) == 0
    source.close()


def test_reading_ahead_gives_the_same_and_is_done_by_another_thread(captured, tokenizer, records):
    config, micro, _ = captured
    plain, ahead = (open_of(config, tokenizer, quiet) for _ in range(2))
    steps = [
        [first(micro, tokenizer, records, *w) for w in step]
        for step in (((0, 1), (2,)), ((3,), ()), ((4, 2), (1,)), ((2,), (2,)))
    ]
    readers, read = [], CacheReader.read
    ahead._reader.read = lambda *args: readers.append(threading.current_thread().name) or read(ahead._reader, *args)
    ahead.prefetch(steps[0], 2.0)
    for step, following in zip(steps, [*steps[1:], None]):
        if following:
            ahead.prefetch(following, 2.0)
        for batch in step:
            for one, other in zip(plain.targets(batch, 2.0), ahead.targets(batch, 2.0)):
                assert one == other if isinstance(one, str) else torch.equal(one, other)
    assert len(readers) == 8 and all(name.startswith("teacher-cache") for name in readers)
    # What was announced for a stage that was left, or at another temperature, is not what is given.
    ahead.prefetch([steps[0][0]], 1.0)
    assert torch.equal(ahead.targets(steps[0][0], 2.0).entropy_t, plain.targets(steps[0][0], 2.0).entropy_t)
    plain.close(), ahead.close()


def test_an_error_of_the_thread_is_raised_where_its_rows_are_asked_for(captured, tokenizer, records):
    config, micro, _ = captured
    source = open_of(config, tokenizer, quiet)
    strange = collate([encode(demo.record("multi", 99), tokenizer)], tokenizer.pad_token_id)
    source.prefetch([first(micro, tokenizer, records, 0), strange], 1.0)
    source.targets(first(micro, tokenizer, records, 0), 1.0)
    with pytest.raises(ValueError, match=f"record {strange.record_ids[0]} is not in .*capture the cache again"):
        source.targets(strange, 1.0)
    source.close()


def test_a_missing_record_is_left_out_and_named(captured, tokenizer, records):
    config, micro, _ = captured
    said = []
    source = open_of(config, tokenizer, said.append)
    assert "1 records got no targets and are left out" in said[0]
    batches = StepBatches(stages_of(config)[0], tokenizer, FitPolicy(600, missing=source.missing), StepShape(6))
    (step,) = next(iter(batches))
    assert step.no_targets == (micro.record_ids[5],) and len(step.record_ids) == 5 and step.too_long == ()
    source.targets(step, 2.0)
    with pytest.raises(
        ValueError, match=f"record {micro.record_ids[5]} got no targets when .* was captured: the server refused it"
    ):
        source.targets(first(micro, tokenizer, records, 5), 1.0)
    source.close()


def test_the_nearest_temperature_of_the_cache_is_used(captured, tokenizer):
    source = open_of(captured[0], tokenizer, quiet)
    assert [source.temperature(t) for t in (1.0, 1.04, 0.96, 1.96, 2.05)] == [1.0, 1.0, 1.0, 2.0, 2.0]
    with pytest.raises(ValueError, match=r"training wants temperature 1.5 and the cache has \[1.0, 2.0\]"):
        source.temperature(1.5)
    source.close()
    # Where no term of the loss has a temperature in it, any of the cache's serves.
    hard = load_config(
        Path(captured[0].teacher.cache.path).parent / "run.yaml",
        ["loss.weights={hard: 0.5, truth: 0.5}", "loss.temperature.start=9.0"],
    )
    source = open_of(hard, tokenizer, quiet)
    assert source.temperature(9.0) == 2.0
    source.close()


def test_every_difference_is_refused_at_once_with_both_values(captured, tokenizer, records, teacher_folder, tmp_path):
    config, _, _ = captured
    folder, cache = tmp_path / "other", config.teacher.cache
    shutil.copytree(teacher_folder, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    write_records(tmp_path / "records.jsonl", records[:5])
    changed = (
        {"kind": "topk", "top_k": 9, "precision": "fp32"}
        if cache.kind == "sampled"
        else {"kind": "sampled", "num_draws": 9}
    )
    overrides = [f"teacher.cache.{key}={value}" for key, value in changed.items()]
    other = load_config(
        Path(cache.path).parent / "run.yaml",
        [
            *overrides,
            "teacher.cache.temperatures=[1.0]",
            f"teacher.path={folder}",
            "teacher.revision=v2",
            "teacher.dtype=bf16",
            f"data.stages.0.train=[{tmp_path}/records.jsonl]",
            "data.stages.0.max_length=500",
            "loss.temperature.start=1.0",
        ],
    )
    another = AutoTokenizer.from_pretrained(teacher_folder)
    another.add_tokens(["<new>"])
    another.chat_template += " "
    with pytest.raises(ValueError) as caught:
        open_of(other, another, quiet)
    text = str(caught.value)
    for wanted in (
        f"kind was '{cache.kind}' and is '{changed['kind']}'",
        "temperatures was [1.0, 2.0] and is [1.0]",
        "vocab_size was 600 and is 601",
        "identity revision was 'none' and is 'v2'",
        "identity dtype was 'fp32' and is 'bf16'",
        "identity weights was",
        "identity tokenizer was",
        "identity template was",
        "identity data of stage a was",
        "6 records, max_length 600, too_long drop' and is",
        "5 records, max_length 500, too_long drop'",
        "or capture into another folder with launch/capture.py",
    ):
        assert wanted in text, wanted
    assert weights_hash(str(teacher_folder), None) in text and weights_hash(str(folder), None) in text


def test_a_seed_batch_size_or_folder_of_training_is_free(captured, tokenizer, teacher_folder, tmp_path):
    config, _, _ = captured
    shutil.copytree(teacher_folder, tmp_path / "moved")
    free = config.model_copy(
        update={
            "run": config.run.model_copy(update={"seed": 99}),
            "training": config.training.model_copy(update={"micro_batch_size": 7}),
            "teacher": config.teacher.model_copy(update={"path": str(tmp_path / "moved")}),
        }
    )
    open_of(free, tokenizer, quiet).close()
    # Without its weights the teacher's name is what is compared.
    (tmp_path / "moved" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="identity teacher was"):
        open_of(free, tokenizer, quiet)


def test_a_cache_that_is_not_there_or_not_finished(captured, tokenizer, tmp_path):
    config, _, _ = captured
    cache = config.teacher.cache.model_copy(update={"path": str(tmp_path / "none")})
    none = config.model_copy(update={"teacher": config.teacher.model_copy(update={"cache": cache})})
    with pytest.raises(NotCaptured, match="none: there is no cache yet; launch/capture.py runs the teacher once"):
        open_of(none, tokenizer, quiet)
    (tmp_path / "none").write_text("mine")
    with pytest.raises(CacheError, match="none is a file, and a cache is a folder") as raised:
        open_of(none, tokenizer, quiet)
    assert not isinstance(raised.value, NotCaptured)  # whose remedy would be refused
    (tmp_path / "none").unlink()
    shutil.copytree(config.teacher.cache.path, tmp_path / "none")
    (tmp_path / "none" / "manifest.json").unlink()
    with pytest.raises(NotCaptured, match=r"its capture was not finished \(2 shards are there, and are kept\)"):
        open_of(none, tokenizer, quiet)


def test_another_tokenizer_is_refused_by_its_first_difference(captured, teacher_folder, tmp_path):
    other = AutoTokenizer.from_pretrained(teacher_folder)
    other.add_tokens(["<new>"])
    other.save_pretrained(tmp_path / "tokenizer")
    config = captured[0].model_copy(
        update={"tokenizer": captured[0].tokenizer.model_copy(update={"path": str(tmp_path / "tokenizer")})}
    )
    with pytest.raises(TokenizerError, match=r"token '<new>' \(600\) is unknown to the teacher"):
        load_tokenizer(config.tokenizer, config.teacher, config.student)


def test_the_tokenizers_hash_is_of_what_decides_ids(tokenizer, teacher_folder):
    other = AutoTokenizer.from_pretrained(teacher_folder)
    assert tokenizer_hash(other) == tokenizer_hash(tokenizer)
    other(["a", "b c d"], padding=True, truncation=True, max_length=3)  # which sets both in the backend
    assert tokenizer_hash(other) == tokenizer_hash(tokenizer)
    other.add_tokens(["<new>"])
    assert tokenizer_hash(other) != tokenizer_hash(tokenizer)


def test_seeds_are_of_record_and_position_alone(tokenizer, records):
    encoded = [encode(record, tokenizer) for record in records[:3]]
    together, alone = collate(encoded, 0), collate(encoded[1:2], 0, 512)
    assert torch.equal(row_seeds(7, together, 4)[together.record == 1], row_seeds(7, alone, 4))
    seeds = torch.cat([row_seeds(seed, together, step) for seed in (7, 8) for step in (CAPTURED, 0, 1)])
    assert len(seeds.unique()) == len(seeds) and seeds.dtype == torch.int64
    assert len(row_seeds(7, collate([], 0), 0)) == 0


def test_a_live_teacher_draws_anew_in_each_step_and_the_same_in_the_same(captured, tokenizer, records):
    config, micro, _ = captured
    teacher = config.teacher.model_copy(update={"cache": None, "targets": "sampled", "num_draws": 30})
    live = open_live(OpenTeacher.for_run(config.model_copy(update={"teacher": teacher}), {}, tokenizer, CPU, quiet, ()))
    one, same, other = (live.targets(micro, 1.5, step) for step in (0, 0, 1))
    assert torch.equal(one.probs, same.probs) and not (
        one.probs.shape == other.probs.shape and torch.equal(one.probs, other.probs)
    )
    assert (
        torch.equal(one.entropy_t, other.entropy_t) and live.temperature(1.234) == 1.234 and live.missing == frozenset()
    )
