"""`dtype: auto` by what the hardware multiplies."""

from __future__ import annotations

import pytest
import torch

from kd import dtypes as precision
from kd.config.load import dump_config, load_config

REPOSITORY_DEMO = "configs/demo.yaml"


@pytest.fixture
def hardware(monkeypatch):
    """hardware(True): a CPU with bf16 instructions; False: one without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)

    def has(bf16: bool) -> None:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16)

    return has


def test_the_question_has_an_answer_here():
    assert precision.multiplies_bf16() in (True, False)


@pytest.mark.parametrize("bf16, dtype", [(True, "bf16"), (False, "fp32")])
def test_the_student_of_the_demo(hardware, bf16, dtype, tmp_path):
    hardware(bf16)
    config = load_config(REPOSITORY_DEMO)
    assert config.student.dtype == dtype
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    hardware(True)  # what was resolved is written out: a run that goes on elsewhere has the same precision
    assert load_config(tmp_path / "resolved.yaml").student.dtype == dtype


def test_saved_weights(hardware):
    hardware(False)
    assert [precision.loaded_dtype(d) for d in (torch.bfloat16, torch.float16, torch.float32, None)] == [
        torch.float32,
        torch.float16,
        torch.float32,
        torch.float32,
    ]
    hardware(True)
    assert precision.loaded_dtype(torch.bfloat16) == torch.bfloat16
