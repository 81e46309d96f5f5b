"""Shape of evaluation.json: what its readers count on, checked where a file comes from a user."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from kd.evaluation.metrics import METRICS

_Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Parts(_Shape):
    sums: list[float]
    counts: list[Annotated[float, Field(ge=0)]]
    by_record: bool


class _Records(_Shape):
    ids: list[str]
    asked: list[str]
    parts: dict[str, _Parts | None]

    @model_validator(mode="after")
    def _are_as_many(self) -> _Records:
        if len(self.asked) != len(self.ids):
            raise ValueError(f"{len(self.ids)} ids, and {len(self.asked)} of asked")
        for name, parts in self.parts.items():
            if parts and {len(parts.sums), len(parts.counts)} != {
                len(self.ids) if parts.by_record else len(parts.sums)
            }:
                raise ValueError(f"{name}: other numbers of sums or counts than records")
        return self


class _Pass(_Shape):
    value: float | None
    interval: _Interval | None


class _Run(_Shape):
    judge: str
    not_run: list[str]
    judges_differ: dict[str, int]


class _Split(_Shape):
    num_records: int
    intervals: dict[str, _Interval | None]
    records: _Records
    counts: dict[str, int] = {}
    errors: dict[str, int] = {}
    extra: dict[str, float | None] = {}
    num_samples: int | None = None
    pass_at_k: dict[str, dict[str, _Pass]] = {}
    bfcl: _Run | None = None

    @model_validator(mode="after")
    def _has_numbers(self) -> _Split:
        for name in METRICS.names():
            value = (self.model_extra or {}).get(name)
            if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
                raise ValueError(f"{name} is no number")
        return self


_EVALUATION: TypeAdapter[Any] = TypeAdapter(dict[str, dict[str, _Split]])


def find_misfit(evaluation: Any) -> str | None:
    """Say where a value is no content of evaluation.json (model -> split -> metrics), and why, or return None."""
    try:
        _EVALUATION.validate_python(evaluation)
    except ValidationError as error:
        first = error.errors()[0]
        said = re.sub(r"^Value error, | or instance of \w+$", "", first["msg"])
        return f"{'.'.join(map(str, first['loc']))}: {said}"
    return None
