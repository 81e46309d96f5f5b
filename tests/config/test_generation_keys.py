"""Configuration of a data set: keys documented and frozen, errors with their line, contradictions."""

from __future__ import annotations

import re

import pytest

from kd.config.load import load_generation
from kd.config.places import add_places
from kd.config.problems import ConfigError, all_keys, field_at, undotted
from kd.config.sections.generation import GenerationConfig

GOOD = """\
output_dir: out
endpoint:
  url: http://127.0.0.1:1/v1
  model: m
spending: {prompt_price: 1.0, limit: 2}
prompts:
  tools: tools
  num: 10
  mix: {single: 1, several: 0}
answers:
  rewards: {exact_call: 1}
"""


def test_every_key_is_documented_and_the_list_is_frozen():
    keys = list(all_keys(GenerationConfig))
    assert keys == FROZEN_KEYS
    for key in keys:
        field = field_at(undotted(key.replace("*", "0")), GenerationConfig)
        assert field is not None and field.description, key


def load(tmp_path, text, *overrides):
    path = tmp_path / "g.yaml"
    path.write_text(text)
    return load_generation(path, overrides)


def test_a_configuration_is_read_with_overrides(tmp_path):
    config = load(tmp_path, GOOD, "prompts.num=20", "sampling.temperature=0")
    assert (config.prompts.num, config.sampling.temperature, config.prompts.mix.several) == (20, 0, 0)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  model: m", "  modle: m", "g.yaml:4: endpoint.modle: unknown key; did you mean endpoint.model?"),
        ("  num: 10\n", "", "g.yaml:7: prompts.num|g.yaml:6: prompts.num: composed prompts have no end"),
        ("  tools: tools\n", "", "prompts.files: prompts come from files or from tools"),
        ("{single: 1, several: 0}", "{singel: 1}", "g.yaml:9: prompts.mix.singel: unknown key; did you mean .*single"),
        ("prompt_price: 1.0, ", "", "spending.limit: without prices nothing is ever spent"),
        ("exact_call: 1", "exact: 1", "answers.rewards"),
        ("exact_call: 1", "exact_call: 0", "answers.rewards: every weight is 0"),
        ("url: http://127.0.0.1:1/v1", "url: http://user:secret@host/v1", "endpoint.url: a value that is not shown"),
    ],
)
def test_errors_name_line_key_and_remedy(tmp_path, old, new, said):
    assert old in GOOD
    with pytest.raises(ConfigError, match=said) as error:
        load(tmp_path, GOOD.replace(old, new))
    assert "secret" not in str(error.value)


def test_errors_of_the_run_name_the_line_of_the_key(tmp_path):
    (tmp_path / "g.yaml").write_text(GOOD)
    assert re.match(
        r".*g\.yaml:4: endpoint\.model: no model", add_places("endpoint.model: no model", tmp_path / "g.yaml")
    )


FROZEN_KEYS = [
    "output_dir",
    "seed",
    "extensions",
    "endpoint.url",
    "endpoint.model",
    "endpoint.api_key_env",
    "endpoint.concurrency",
    "endpoint.timeout_seconds",
    "endpoint.retries",
    "endpoint.record_deadline_seconds",
    "endpoint.deadline_seconds",
    "endpoint.max_missing",
    "sampling.temperature",
    "sampling.top_p",
    "sampling.max_new_tokens",
    "sampling.num_samples",
    "sampling.max_rounds",
    "spending.prompt_price",
    "spending.completion_price",
    "spending.limit",
    "spending.overhead_tokens",
    "prompts.files",
    "prompts.tools",
    "prompts.num",
    "prompts.mix.single",
    "prompts.mix.several",
    "prompts.mix.near_miss",
    "prompts.mix.no_tool",
    "prompts.mix.missing",
    "prompts.mix.recovery",
    "prompts.languages",
    "prompts.num_distractors",
    "prompts.near_duplicates",
    "prompts.system",
    "broker.fixtures",
    "broker.function",
    "broker.timeout_seconds",
    "broker.endpoint.url",
    "broker.endpoint.model",
    "broker.endpoint.api_key_env",
    "broker.endpoint.concurrency",
    "broker.endpoint.timeout_seconds",
    "broker.endpoint.retries",
    "broker.endpoint.record_deadline_seconds",
    "broker.endpoint.deadline_seconds",
    "broker.endpoint.max_missing",
    "answers.reasoning",
    "answers.repair",
    "answers.rewards",
    "answers.min_quality",
    "answers.scrub",
    "caws.project",
    "caws.specs",
    "caws.form",
    "caws.date",
    "splits.tools",
    "splits.templates",
]
