"""Values that cannot be meant: refused with their place and remedy, and at once however large they are."""

from __future__ import annotations

import os
import threading
import typing

import pytest

from helpers.config_cases import GOOD, changed, problems
from kd.config import load
from kd.config import problems as config_problems
from kd.config.conflicts import teacher as teacher_conflicts
from kd.config.load import load_config
from kd.config.problems import MOST_LISTED, ConfigError, all_keys, field_at, undotted


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a\0b.yaml", "'a\\x00b.yaml': a path has no NUL byte in it: remove it"),
        ("\ud800.yaml", "'\\ud800.yaml': a path is text in UTF-8"),
        ("/dev/zero", "/dev/zero: more than 250,000 characters: give the run's YAML, not its data"),
    ],
)
def test_paths_that_no_configuration_has(path, said):
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(said)


def test_a_pipe_that_is_written_to_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(GOOD), daemon=True)
    writer.start()
    assert load_config(tmp_path / "pipe").run.name == "test"
    writer.join(20)


@pytest.mark.parametrize("held", [False, True])
def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path, monkeypatch, held):
    monkeypatch.setattr(load, "_PIPE_SECONDS", 0.3)
    os.mkfifo(tmp_path / "pipe")
    handle = os.open(tmp_path / "pipe", os.O_RDWR) if held else None
    with pytest.raises(ConfigError, match="pipe: is a pipe that was not written to its end within 0.3 s: give a file"):
        load_config(tmp_path / "pipe")
    if handle is not None:
        os.close(handle)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  steps: 100", "  steps: " + "9" * 5000, "26: training.steps: a number of 5,000 digits: no key takes"),
        ("  steps: 100", "  steps: 1" + "0" * 30, "26: training.steps: must be at most 1,000,000,000, got 1000000"),
        ("path: some/teacher", 'path: "  "', "4: teacher.path: must not be blank. Folder with a saved causal LM"),
        ("path: some/teacher", 'path: "a\\0"', "4: teacher.path: holds a NUL character, which no name or path can"),
        ("path: some/teacher", 'path: "\\ud800"', "4: teacher.path: holds half of a surrogate pair"),
        ("path: some/teacher", f"path: a/{'x' * 300}", "4: teacher.path: has a name of 300 bytes in it, and no file's"),
        ("train: [b.jsonl]", 'train: [" "]', "19: data.stages.1.train.0.files: must not be blank"),
        ("train: [b.jsonl]", "mix: {sinlge: 1}", "19: data.stages.1.mix.sinlge: must be one of 'echo', 'single', "),
        ("num_hidden_layers: 2", "num_hidden_layers: 1000000", "9: student.num_hidden_layers: must be at most 4096"),
        (
            "  steps: 100",
            "  steps: 100\n  micro_batch_size: 1000000000",
            "27: training.micro_batch_size: must be at most 1,048,576, got 1000000000. Rows per GPU",
        ),
        (
            "data:",
            "data:\n  demo: {num_records: 1000000000000}",
            "13: data.demo.num_records: must be at most 10,000,000, got 1000000000000",
        ),
        ("name: test", f"name: {'a' * 201}", "2: run.name: the text 'aaaa"),
    ],
)
def test_values_that_cannot_be_meant(write, old, new, expected):
    (problem,) = problems(write(changed(old, new)))
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  steps: 100\n", "  steps:100\n", ":26: not valid YAML: `steps:` needs a space after its colon"),
        ("  lr: 3e-4\n", "  lr: 3e-4\n  clip:1\n\n  eps: 1e-8\n", ":25: not valid YAML: `clip:` needs a space"),
    ],
)
def test_a_missing_space_after_a_colon_is_named_on_its_own_line(write, old, new, expected):
    path = write(changed(old, new))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(path + expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  lr: 3e-4", "  lr:3e-4", "23: optimizer: expected a section (key: value lines), got the text 'lr:3e-4': "),
        ("loss:\n  w_tool: 0.2", "loss: {w_tool:0.2}", "21: loss.w_tool:0.2: unknown key: "),
    ],
)
def test_a_missing_space_that_yaml_allows_is_named_too(write, old, new, expected):
    (problem,) = problems(write(changed(old, new)))
    assert problem.startswith(expected + "write a space after the colon of `")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optimzer.lr=1"], ["--set optimzer.lr: optimzer: unknown key; did you mean optimizer?"]),
        (
            ["evaluation.batch_sice=1"],
            ["--set evaluation.batch_sice: evaluation.batch_sice: unknown key; did you mean"],
        ),
        (["teacher.endpoint.retries=3"], ["--set teacher.endpoint.retries: teacher.endpoint.url: required"] * 1),
        (["training.steps=" + "1" * 5000], ["--set training.steps: training.steps: a number of 5,000 digits"]),
        ([f"data.stages.{'1' * 5000}.name=x"], [f"--set data.stages.{'1' * 188}: there is no place data.stages.111"]),
        (
            ["training.steps=50", "training.steps=60"],
            ["--set training.steps: --set gives this key two values: keep one"],
        ),
        (
            ["loss.weights.truth=2", "loss.weights={kd: 1}"],
            ["--set loss.weights: --set gives this key two values, by loss.weights.truth and by loss.weights: keep"],
        ),
    ],
)
def test_overrides_are_blamed_on_set(write, overrides, expected):
    found = problems(write(GOOD), overrides)
    assert [line[: len(start)] for line, start in zip(found, expected)] == expected


def test_overrides_that_agree_or_add_are_taken(write):
    config = load_config(
        write(GOOD),
        ["training.steps=50", "training.steps=50", "loss.weights={kd: 3}", "loss.weights.truth=2", "loss.weights.kd=1"],
    )
    assert config.training.steps == 50 and (config.loss.weights.kd, config.loss.weights.truth) == (1, 2)


def numbers(annotation, metadata=()) -> typing.Iterator[tuple[type, tuple]]:
    """Yield each int and float inside a type, with the metadata that binds it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = [found for one in arguments[1:] for found in getattr(one, "metadata", [one])]
        yield from numbers(arguments[0], (*metadata, *inner))
    elif arguments:
        for one in arguments:
            yield from numbers(one, metadata if origin not in (tuple, dict) else ())
    elif annotation in (int, float):
        yield annotation, metadata


@pytest.mark.parametrize("key", [key for key in all_keys() if not key.endswith("*")])
def test_every_number_has_bounds_and_its_text_says_them(key):
    field = field_at(undotted(key.replace("*", "0")))
    for _, metadata in numbers(field.annotation, tuple(field.metadata)):
        for bound in (("gt", "ge"), ("lt", "le")):
            assert any(getattr(one, name, None) is not None for one in metadata for name in bound), key
        assert any(words in field.description for words in ("at most", "from 0", "from 1", "below ")), key


def test_many_wrong_keys_are_counted_and_few_explained(write, monkeypatch):
    asked = []
    monkeypatch.setattr(config_problems.difflib, "get_close_matches", lambda *a, **k: asked.append(a) or [])
    for number in (1000, 4000):
        found = problems(write(GOOD + "".join(f"z{i}: 1\n" for i in range(number))))
        assert len(found) == MOST_LISTED + 1 and found[-1] == f"and {number - MOST_LISTED:,} more"
    assert len(asked) <= 2 * 2 * MOST_LISTED


def test_a_long_schedule_is_held_to_the_cache_without_a_walk_over_its_steps(write, monkeypatch):
    steps = []
    real = teacher_conflicts.scheduled
    monkeypatch.setattr(teacher_conflicts, "scheduled", lambda *a: steps.append(a) or real(*a))
    cosine = "loss.temperature={schedule: cosine, start: 2.0, end: 1.0}"
    cache = "teacher.cache={path: c, temperatures: [2.0, %s1.0], t_tolerance: 0.3}"
    load_config(write(GOOD), ["training.steps=100000000", cosine, cache % "1.5, "])
    (problem,) = problems(write(GOOD), ["training.steps=100000000", cosine, cache % ""])
    assert "training is at temperature 1.7 in step 36901012, and the nearest of [2, 1]" in problem
    assert len(steps) < 20_000


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    "temperatures", [(2.0, 1.0), (2.0, 1.7, 1.0), (1.0, 1.31, 1.6, 1.95), (2.0, 1.8, 1.5, 1.2, 1.0)]
)
def test_the_first_step_that_is_not_cached_is_the_one_that_a_walk_finds(write, schedule, temperatures):
    for num_steps in (1, 2, 3, 7, 40, 5000):
        cache = teacher_conflicts.TeacherCache(path="c", temperatures=temperatures, t_tolerance=0.16)

        def at(step, num_steps=num_steps):
            return teacher_conflicts.scheduled(schedule, 2.0, 1.0, step, num_steps)

        walked = (
            step
            for step in range(num_steps)
            if min(abs(at(step) - one) for one in temperatures) > cache.t_tolerance + 1e-12
        )
        assert teacher_conflicts.first_step_not_cached(cache, at, num_steps) == next(walked, None)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["data.demo={}", "data.evaluation={test: demo}"],
            "data.evaluation.test: the demo corpus has no held-out split of this name: use unseen_values or",
        ),
        (
            ["data.demo={}", "data.evaluation={unseen_tools: demo}", "evaluation.num_records=1000000"],
            "evaluation.num_records: 1,000,000 demo records would be made for each split: lower it to 100,000",
        ),
        (
            ["loss.temperature={schedule: linear, start: 2, end: 2}"],
            "loss.temperature.end: 2 is the start as well, so that nothing moves: use schedule: constant",
        ),
        (
            ["optimizer.lr=5", "optimizer.weight_decay=0.2"],
            "optimizer.weight_decay: times lr is 1, and a step takes this part of each weight away: lower one",
        ),
    ],
)
def test_further_contradictions(write, overrides, expected):
    (problem,) = problems(write(GOOD), overrides)
    assert problem.split(": ", 1)[1].startswith(expected)


def test_a_divergence_of_ones_own_may_take_beta_and_may_have_no_sparse_formula(write):
    from kernels import Divergence, divergences

    divergences.register_divergence(Divergence("mine", dense=lambda *a: a, needs_beta=True))
    try:
        assert load_config(write(GOOD), ["loss.divergence=mine", "loss.beta=0.5"]).loss.beta == 0.5
        (problem,) = problems(write(GOOD), ["loss.beta=0.5"])
        assert "only with divergence: jsd or mine (here forward_kl): remove it, or use jsd or mine" in problem
        (problem,) = problems(write(GOOD), ["loss.divergence=mine", "loss.beta=0.5", "teacher.targets=topk"])
        assert "mine has no formula for a teacher's best tokens alone (topk): use teacher.targets: dense" in problem
    finally:
        divergences.unregister_divergence("mine")


@pytest.mark.parametrize("key", ["run.output_dir", "teacher.path", "training.deepspeed", "data.quarantine"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a" * 256, "has a name of 256 bytes in it, and no file's has more than 255: shorten it"),
        ("é" * 128, "has a name of 256 bytes in it, and no file's has more than 255: shorten it"),
        ("a/" * 2048, "a path has fewer than 4096 characters: give a shorter one"),
    ],
)
def test_a_path_that_no_disk_takes_is_refused_at_its_key(write, key, path, said):
    assert f"{key}: {said}" in problems(write(GOOD), [f"{key}={path}"])[0]
