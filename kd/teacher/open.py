"""TODO docstring."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from kd.config.schema import RunConfig
from kd.distributed.deepspeed_json import teacher_ds_config
from kd.sources.source import Source
from kd.teacher.source import TeacherSource


def open_teacher(
    config: RunConfig,
    ds_config: dict,
    tokenizer,
    device: torch.device,
    say: Callable[[str], None],
    sources: Sequence[Source],
) -> TeacherSource:
    """The source that `config.teacher` asks for. All ranks call it together.

    Args:
        ds_config: DeepSpeed settings of a live teacher that has no JSON of its own.
        say: told, in words, what a person should know.
        sources: the records of each stage, of which a cache must be.

    Raises:
        NotCaptured: teacher.cache names a folder without a finished cache.
        CacheError: the cache is damaged, or another teacher's, tokenizer's, template's or dataset's.
    """
    from kd.teacher.cached import open_cache
    from kd.teacher.live import LiveTeacher

    if config.teacher.cache is not None:
        return open_cache(config, tokenizer, device, say, sources)
    return LiveTeacher(config, teacher_ds_config(config.teacher, ds_config), len(tokenizer), device)
