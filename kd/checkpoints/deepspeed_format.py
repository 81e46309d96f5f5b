"""DeepSpeed's own checkpoint format: for the world size and ZeRO stage that wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


FORMAT = DeepSpeedFormat()
