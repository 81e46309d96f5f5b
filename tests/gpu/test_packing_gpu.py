"""Packed records on a real GPU: the attention kernels themselves keep them apart."""

import pytest
import torch
from transformers.utils import is_flash_attn_2_available

for package in ("json_repair", "jsonschema"):  # kd needs them; a bare GPU machine has only what the kernels need
    pytest.importorskip(package)

from helpers.packing_cases import assert_no_leak, model  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3 with windows"])
def test_masks_keep_records_apart(family, attention):
    assert_no_leak(model(family, attention).cuda())


@pytest.mark.skipif(not is_flash_attn_2_available(), reason="needs the flash-attn package")
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3 with windows"])
def test_flash_attention_keeps_records_apart(family):
    assert_no_leak(model(family, "flash_attention_2").cuda().bfloat16(), alone_within=0.05)
