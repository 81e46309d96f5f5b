"""A teacher of mixtures of experts, sharded: ranks whose tokens go to other experts neither hang nor differ."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.forked import run_ranks
from helpers.tiny_models import SIZES
from kd.batching.fit import Sample
from kd.batching.micro_batch import MicroBatch, pad_samples
from kd.config.schema import Teacher
from kd.models.hidden_states import hidden_rows
from kd.rendering.spans import TRUTH
from kd.teacher.model import TeacherModel

EXPERTS = {"num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
ZERO = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}, "steps_per_print": 10**9}
QUICK = ("qwen3_moe",)


def micro_of(rank: int) -> MicroBatch:
    ids = torch.randint(2, 90, (6,), generator=torch.Generator().manual_seed(rank)).numpy()  # few: other experts a rank
    return pad_samples([Sample("r", ids, (ids * 0 + TRUTH).astype("uint8"), 1.0, b"k" * 16)], 0)


def _rows(families, out: Path) -> None:
    rank = torch.distributed.get_rank()
    for family in families:
        print(family, flush=True)
        teacher = Teacher(path=str(out / family), dtype="fp32")
        model = TeacherModel(teacher, ZERO, torch.device("cpu"), packed=False, attention_implementation="eager")
        found = [model.rows(micro_of(rank + 2 * step)).hidden for step in range(3)]
        torch.save((found, model.head.weight), out / f"{family}.{rank}.pt")


def check(families, out: Path) -> None:
    whole = {}
    for family in families:
        torch.manual_seed(1)
        config = AutoConfig.for_model(family, **SIZES | EXPERTS, num_hidden_layers=2, initializer_range=0.3)
        whole[family] = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        whole[family].save_pretrained(out / family)
    run_ranks(2, lambda: _rows(families, out), out / "log")
    for family, model in whole.items():
        for rank in (0, 1):
            found, head = torch.load(out / f"{family}.{rank}.pt")
            assert torch.equal(head, model.lm_head.weight)
            for step, rows in enumerate(found):
                with torch.no_grad():
                    wanted = hidden_rows(model, micro_of(rank + 2 * step))
                torch.testing.assert_close(rows, wanted, rtol=1e-5, atol=1e-5)


def test_a_sharded_teacher_of_experts_gives_the_whole_models_rows(tmp_path):
    check(QUICK, tmp_path)


@pytest.mark.slow
def test_of_other_families_too(tmp_path):
    check(("mixtral", "olmoe", "qwen2_moe"), tmp_path)
