"""Demo source: records of the demo corpus by position, made when they are read."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict

from kd.records.checks import DataError
from kd.records.record import Record
from kd.sources.demo import corpus as demo

_FINGERPRINTED = 32  # records of the demo corpus, which its generator makes


class DemoSource:
    """The demo corpus, made record by record.

    Args:
        mix: kinds and their weights; a kind with the suffix _short gives its short records.

    Raises:
        DataError: the corpus has no such kind.
    """

    spool = None

    def __init__(self, num_records: int, seed: int, mix: dict[str, float]):
        unknown = [k for k in mix if k.removesuffix("_short") not in demo.KINDS]
        if unknown:
            raise DataError(
                f"data.stages: mix: no demo record kind {unknown[0]!r}; kinds are {', '.join(demo.KINDS)}, each also "
                "as kind_short"
            )
        self._kinds = random.Random(f"{seed}:kinds").choices(list(mix), list(mix.values()), k=num_records)
        self._seed, self._mix = seed, mix

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, index: int) -> Record:
        kind = self._kinds[index]
        return demo.record(kind.removesuffix("_short"), index, seed=self._seed, short=kind.endswith("_short"))

    def size_hint(self, index: int) -> int:
        """Return about the record's length in characters."""
        record = self[index]
        return (
            sum(len(m["content"]) + 2 * len(str(m.get("tool_calls", ""))) for m in record.messages)
            + len(str(record.tools)) // 4
        )

    def place(self, index: int) -> str:
        """Return where a record comes from: the corpus and the record's number, from 1."""
        return f"demo:{index + 1}"

    def fingerprint(self) -> str:
        """Return the SHA-256 over the parameters and the first records: another version of the corpus is another
        corpus.
        """
        first = [asdict(self[index]) for index in range(min(len(self), _FINGERPRINTED))]
        return hashlib.sha256(
            json.dumps([len(self), self._seed, self._mix, first], ensure_ascii=False).encode()
        ).hexdigest()
