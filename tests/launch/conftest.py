"""Runs in this process leave its process group behind; the tests of other folders make their own."""

from __future__ import annotations

import pytest
import torch.distributed as dist


@pytest.fixture(autouse=True, scope="module")
def no_group_left():
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
