"""A checkpoint format: DeepSpeed's files for the engine, and each rank's state in a file of its own."""

import torch

from kd.checkpoints.deepspeed_format import read_zero_weights
from kd.config.registries import CHECKPOINT_FORMATS


class SplitFormat:
    """CheckpointFormat (kd/checkpoints/format.py)."""

    def save(self, engine, folder, state):
        engine.save_checkpoint(str(folder), tag="engine", save_latest=False)
        torch.save(state, folder / f"state-{engine.global_rank}.pt")

    def load(self, engine, folder):
        engine.load_checkpoint(str(folder), tag="engine", load_lr_scheduler_states=False)
        return torch.load(folder / f"state-{engine.global_rank}.pt", weights_only=False)

    def read_weights(self, folder):
        return read_zero_weights(folder, "engine")


CHECKPOINT_FORMATS.register("split", SplitFormat())
