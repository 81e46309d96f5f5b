"""Records of a capture that the teacher gave no targets for."""

from __future__ import annotations

from pathlib import Path

from kd.config.schema import Endpoint
from kd.teacher.cache.manifest import shard_name
from kd.teacher.cache.shard import open_shard
from kd.teacher.cache.spec import CacheSpec, Missing
from kd.teacher.cache.writer import CacheWriter
from kd.teacher.capture.errors import CaptureError
from kd.teacher.capture.plan import CapturePlan


def read_missing(
    folder: Path, spec: CacheSpec, plan: CapturePlan, writer: CacheWriter, published: list[int]
) -> dict[int, list[Missing]]:
    """Read which records of published shards have no targets: shard -> records, shards without any left out.

    Raises:
        CaptureError: a shard does not hold the records that the plan gives it: they are rendered otherwise now, and
            its targets are of no use to them.
    """
    found: dict[int, list[Missing]] = {}
    for shard in published:
        there = set(map(bytes, open_shard(folder / shard_name(shard), spec).tensors["keys"]))
        wanted = {row.tobytes() for row in plan.of_shard(plan.keys, shard)}
        without = wanted - there
        num_strange = len(there - wanted) + len(without - writer.missing.keys())
        if num_strange:
            raise CaptureError(
                f"{folder / shard_name(shard)} does not hold the records that the data gives now ({num_strange} "
                "differ), though data, tokenizer and template are the same: something else changes how they are "
                "rendered; undo that, or capture into another teacher.cache.path"
            )
        if without:
            found[shard] = [writer.missing[key] for key in without]
    return found


def check_missing(endpoint: Endpoint | None, num_records: int, missing: list[Missing]) -> None:
    """Refuse more missing records than teacher.endpoint.max_missing allows.

    Those of earlier starts count too, which the endpoint's own limit does not know of.

    Raises:
        CaptureError: there are more.
    """
    if endpoint is not None and len(missing) > int(endpoint.max_missing * num_records):
        raise CaptureError(
            f"{len(missing)} of {num_records} records have no targets, more than teacher.endpoint.max_missing "
            f"({endpoint.max_missing:g}) allows; the last is {missing[-1].record_id}: {missing[-1].reason}; what was "
            "captured is kept: start the same command with --retry-missing once the endpoint is mended, or raise "
            "max_missing"
        )
