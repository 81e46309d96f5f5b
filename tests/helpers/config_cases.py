"""A good run's YAML to break one line of, and the problems that loading it reports."""

from __future__ import annotations

import pytest

from kd.config.load import load_config
from kd.config.problems import ConfigError

# Every key has its own line, so that a test can replace one and know the line of the error.
GOOD = """\
run:
  name: test
teacher:
  path: some/teacher
student:
  architecture: qwen3
  hidden_size: 64
  intermediate_size: 128
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
data:
  stages:
    - name: first
      train: [a.jsonl]
      max_length: 128
      until: {steps: 10}
    - name: second
      train: [b.jsonl]
      max_length: 256
loss:
  w_tool: 0.2
optimizer:
  lr: 3e-4
training:
  steps: 100
  deepspeed: ds_configs/zero3_cpu.json
"""


def problems(path: str, overrides=()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return [line.strip().removeprefix(path).removeprefix(":") for line in str(caught.value).splitlines()[1:]]


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)
