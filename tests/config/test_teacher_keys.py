"""Keys of the teacher: its targets, its cache, its endpoint; no secret comes into an error."""

from __future__ import annotations

import pytest

from helpers.config_cases import GOOD, changed, problems
from kd.config.load import dump_config, load_config

CACHE = "teacher:\n  path: some/teacher\n  cache: {path: c, temperatures: [2.0], "


def test_what_the_teacher_gives_is_filled_in(write):
    teacher = load_config(write(GOOD)).teacher
    assert (teacher.targets, teacher.top_k, teacher.num_draws, teacher.cache) == ("dense", None, None, None)
    teacher = load_config(write(GOOD), ["teacher.targets=topk"]).teacher
    assert (teacher.targets, teacher.top_k, teacher.num_draws) == ("topk", 64, None)
    assert load_config(write(GOOD), ["teacher.targets=sampled"]).teacher.num_draws == 50
    teacher = load_config(write(changed("teacher:\n  path: some/teacher\n", CACHE + "kind: topk}\n"))).teacher
    assert teacher.targets is None
    assert (teacher.cache.top_k, teacher.cache.precision, teacher.cache.num_draws) == (32, "16bit", None)
    config = load_config(write(changed("teacher:\n  path: some/teacher\n", CACHE + "}\n")))
    assert (config.teacher.cache.kind, config.teacher.cache.num_draws, config.teacher.cache.precision) == (
        "sampled",
        50,
        None,
    )
    assert load_config(write(dump_config(config))) == config


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["teacher.top_k=5"], ["teacher.top_k: only with targets: topk (here dense)"]),
        (
            ["teacher.targets=topk", "teacher.num_draws=5"],
            ["teacher.num_draws: only with targets: sampled (here topk)"],
        ),
        (
            ["teacher.targets=sampled", "loss.divergence=reverse_kl"],
            ["loss.divergence: reverse_kl cannot be estimated from draws"],
        ),
        (
            ["teacher.cache={path: c, temperatures: [2.0]}", "loss.divergence=jsd", "loss.beta=0.5"],
            ["loss.divergence: jsd cannot be estimated from draws"],
        ),
        (
            ["teacher.cache={path: c, temperatures: [2.0]}", "teacher.targets=topk", "teacher.top_k=8"],
            [
                "teacher.targets: is of a teacher that runs beside the student",
                "teacher.top_k: is of a teacher that runs",
            ],
        ),
        (
            ["teacher.cache={path: c, temperatures: [2.0], top_k: 8, precision: fp32}"],
            [
                "teacher.cache.top_k: only with kind: topk (here sampled)",
                "teacher.cache.precision: only with kind: topk",
            ],
        ),
        (
            ["teacher.cache={path: c, temperatures: [2.0], kind: topk, num_draws: 8}"],
            ["teacher.cache.num_draws: only with kind: sampled (here topk)"],
        ),
        (
            ["teacher.cache={path: c, temperatures: [2.0, 2]}"],
            ["teacher.cache.temperatures: [2, 2] names a temperature twice"],
        ),
        (
            ["teacher.cache={path: c}"],
            [
                "teacher.cache.temperatures: training is at temperature 2 in step 0, and the "
                "nearest of [1] is farther than "
                "t_tolerance (0.05): add 2 to this list"
            ],
        ),
        (
            [
                "teacher.cache={path: c, temperatures: [2.0, 1.0]}",
                "loss.temperature={schedule: linear, start: 2.0, end: 1.0}",
            ],
            ["teacher.cache.temperatures: training is at temperature 1.949 in step 5, and the nearest of [2, 1]"],
        ),
        (
            [
                "teacher.cache={path: c, temperatures: [2.0, 1.0], t_tolerance: 0.5}",
                "loss.temperature={schedule: cosine, start: 2.0, end: 1.0}",
            ],
            [],
        ),
        # no term has the temperature
        (["teacher.cache={path: c, t_tolerance: 0.5}", "loss.weights={hard: 0.5, truth: 0.5}"], []),
        (["teacher.cache={path: c, t_tolerance: 0.5}", "loss.weights={truth: 1}"], []),
        (["teacher.cache={path: c, t_tolerance: 0.5}", "loss.teacher_share={start: 0, end: 0}"], []),
        (["teacher.cache={path: c, t_tolerance: 0.5}", "loss.entropy_weighting={kd: [0, 0]}"], []),
        (
            ["teacher.cache={path: c}", "loss.teacher_share={start: 0, end: 0.1}"],
            ["teacher.cache.temperatures: training is at temperature 2 in step 0"],
        ),
        (
            ["teacher.cache={path: c}", "loss.entropy_weighting={kd: [0, 0.1]}"],
            ["teacher.cache.temperatures: training is at temperature 2 in step 0"],
        ),
        (
            ["teacher.cache={path: c, temperatures: [2.0], num_draws: 256}"],
            ["teacher.cache.num_draws: must be at most 255"],
        ),
    ],
)
def test_teacher_signal_and_cache(write, overrides, expected):
    if not expected:
        assert load_config(write(GOOD), overrides).teacher.cache.t_tolerance == 0.5
        return
    found = [line.partition(": ")[2] for line in problems(write(GOOD), overrides)]
    found = [
        line[line.index("teacher.") :] if "teacher." in line and not line.startswith("loss") else line for line in found
    ]
    assert len(found) == len(expected) and all(any(wanted in line for line in found) for wanted in expected), found


ENDPOINT = """  path: some/teacher
  cache: {path: c, kind: topk}
  endpoint:
    url: http://127.0.0.1:8000/v1
    model: teacher
"""
AT_ONE = "loss.temperature.start=1.0"


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@host/v1",
        "http://host/v1?key=hunter2",
        "ftp://host/hunter2",
        "http:///hunter2",
        "http://host/v1 hunter2",
    ],
)
def test_an_address_with_a_secret_in_it_is_refused_and_not_repeated(write, url):
    path = write(changed("  path: some/teacher\n", ENDPOINT.replace("http://127.0.0.1:8000/v1", url)))
    (problem,) = problems(path, [AT_ONE])
    assert (
        problem.startswith("7: teacher.endpoint.url: a value that is not shown here is not allowed. Base address")
        and "hunter2" not in problem
    )


@pytest.mark.parametrize(
    "url", ["https://host", "https://a.b.c:8443/v1", "http://[::1]:8000/v1", "http://host/team/v1/"]
)
def test_addresses_of_endpoints(write, url):
    config = load_config(
        write(changed("  path: some/teacher\n", ENDPOINT.replace("http://127.0.0.1:8000/v1", url))), [AT_ONE]
    )
    assert config.teacher.endpoint.url == url


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "  cache: {path: c, kind: topk}\n",
            "",
            "5: teacher.endpoint: is asked when a cache is captured: add `cache: {path: ..., kind: topk}`",
        ),
        (
            "kind: topk",
            "kind: sampled",
            "5: teacher.cache.kind: an endpoint tells its best tokens alone: use kind: topk (here sampled)",
        ),
        (
            "kind: topk",
            "kind: topk, temperatures: [1.0, 2.0]",
            "5: teacher.cache.temperatures: an endpoint tells probabilities at temperature 1 alone: use [1.0]",
        ),
        (
            "path: some/teacher\n",
            "path: some/teacher\n  deepspeed: ds_configs/zero3_cpu.json\n",
            "5: teacher.deepspeed: no teacher runs here",
        ),
        (
            "",
            "loss.entropy_weighting={}",
            "--set loss.entropy_weighting: loss.entropy_weighting: an endpoint tells no entropy: use loss.weights",
        ),
    ],
)
def test_what_an_endpoint_has_not(write, old, new, expected):
    overrides = [AT_ONE, *([] if old else [new])]
    path = write(changed("  path: some/teacher\n", ENDPOINT.replace(old, new) if old else ENDPOINT))
    (problem,) = problems(path, overrides)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("schedule", "remedy"),
    [
        ("start: 2.0", "set loss.temperature.start: 1.0"),
        (
            "schedule: linear, start: 1.0, end: 3.0",
            "set loss.temperature.start: 1.0, and schedule: constant without end",
        ),
    ],
)
def test_the_temperature_of_a_run_from_an_endpoint_is_1(write, schedule, remedy):
    """Another captured temperature is no advice: an endpoint tells none."""
    text = changed("  path: some/teacher\n", ENDPOINT).replace("loss:\n", f"loss:\n  temperature: {{{schedule}}}\n")
    (problem,) = problems(write(text))
    assert (
        problem.startswith("26: loss.temperature.start: training is at temperature ")
        and "an endpoint tells probabilities at temperature 1 alone" in problem
    )
    assert problem.endswith(remedy)
    load_config(write(text), ["loss.temperature={start: 1.0}"])


def test_a_key_in_place_of_the_name_of_its_variable_is_not_repeated(write):
    path = write(changed("  path: some/teacher\n", ENDPOINT + "    api_key_env: sk-Hunter2\n"))
    (problem,) = problems(path, [AT_ONE])
    assert problem.startswith(
        "9: teacher.endpoint.api_key_env: a value that is not shown here is not allowed. Name of the environment "
        "variable"
    )
    good = write(changed("  path: some/teacher\n", ENDPOINT))
    (problem,) = problems(good, [AT_ONE, "teacher.endpoint.api_key_env=sk-Hunter2"])
    assert (
        problem.startswith("--set teacher.endpoint.api_key_env: teacher.endpoint.api_key_env: a value")
        and "Hunter2" not in problem
    )


@pytest.mark.parametrize(
    "value",
    [
        "sk-Hunter2",
        "*Hunter2",
        "!Hunter2",
        "'Hunter2",
        "[Hunter2",
        "{a: Hunter2}",
        "http://me:Hunter2@host/v1",
        "a: b: Hunter2",
    ],
)
@pytest.mark.parametrize(
    "override",
    [
        "teacher.endpoint.api_key={}",
        "teacher.endpoint.api_key: {}",
        "teacher.endpoint.api_key {}",
        "teacher.endpoint.api_key_env={}",
        "teacher.endpoint={{url: http://h/v1, model: m, api_key: {}}}",
        "teacher.endpoint={{url: http://h/v1, model: m, api_key_env: {}, concurrency: 999}}",
        "teacher.endpoint={{url: {}, model: m, retries: 999}}",
        "teacher.endpoint={}",
        "teacher={}",
        "teacher={{endpoint: {}}}",
        "teacher.api_key={}",
        "endpoint.api_key={}",
        "api_key={}",
        "={}",
    ],
)
def test_nothing_that_an_override_sets_is_repeated(write, override, value):
    """A key given in a wrong place, beside another fault, or not as YAML, must not come into a log."""
    found = problems(write(changed("  path: some/teacher\n", ENDPOINT)), [AT_ONE, override.format(value)])
    assert found and not any("Hunter2" in line for line in found), found


@pytest.mark.parametrize("line", ["api_key: sk-Hunter2", "api_key_env: !Hunter2", "api_key_env: [Hunter2]"])
def test_nothing_that_may_be_a_key_is_repeated_from_the_file(write, line):
    (problem,) = problems(write(changed("  path: some/teacher\n", f"{ENDPOINT}    {line}\n")), [AT_ONE])
    assert problem.startswith("9: teacher.endpoint.api_key") and "Hunter2" not in problem
