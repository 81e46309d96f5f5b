"""DeepSpeed's own checkpoint format: resumed by the world size and ZeRO stage that wrote it; any reads its weights."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from torch import Tensor

_TAG = "state"  # DeepSpeed's folder inside a checkpoint


class DeepSpeedFormat:
    """CheckpointFormat by engine.save_checkpoint; its `latest` file is not used, as it can name a torn checkpoint."""

    def save(self, engine: Any, folder: Path, state: dict[str, Any]) -> None:
        engine.save_checkpoint(str(folder), tag=_TAG, client_state={"run": state}, save_latest=False)

    def load(self, engine: Any, folder: Path) -> dict[str, Any]:
        loaded, client = engine.load_checkpoint(str(folder), tag=_TAG, load_lr_scheduler_states=False)
        if loaded is None:
            raise FileNotFoundError(f"DeepSpeed finds nothing to load in {folder}")
        return client["run"]

    def read_weights(self, folder: Path) -> dict[str, Tensor]:
        return read_zero_weights(folder, _TAG)


def read_zero_weights(folder: Path, tag: str) -> dict[str, Tensor]:
    """Read the whole weights (fp32, CPU) of engine.save_checkpoint(folder, tag), of any world size and any ZeRO stage
    from 1 on; no engine and no process group is needed.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it prints what it finds
        found = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=tag)
    assert found is not None, "it is in whole tensors, not written to a file"
    return dict(found)


FORMAT = DeepSpeedFormat()
