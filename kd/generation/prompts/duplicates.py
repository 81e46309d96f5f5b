"""Prompts that were there before: equal ones after folding case and blanks, and near ones by MinHash."""

from __future__ import annotations

import hashlib
from typing import Any

from kd.errors import SpanwiseError

_LETTERS = 5  # of a shingle
_NUM_PERM, _NUM_BANDS = 128, 32


class LibraryMissing(SpanwiseError, ImportError):
    """Library of an extra that is not installed."""


class Seen:
    """Prompts so far. 16 bytes are kept of each, and 512 more where near ones count.

    near: least likeness (Jaccard of shingles of five letters) that makes a duplicate; None for equal ones alone.

    Raises:
        LibraryMissing: `near` is given, and the library is not there.
    """

    def __init__(self, near: float | None = None):
        self._exact: set[bytes] = set()
        self._near, self._index, self._kept = near, None, []
        if near is not None:
            self._library = _import_library()
            self._index = self._library.RMinHashLSH(threshold=near, num_perm=_NUM_PERM, num_bands=_NUM_BANDS)

    def add(self, text: str) -> str:
        """Add a prompt, and return "", or "equal" or "near" where it was there and is not added."""
        folded = " ".join(text.casefold().split())
        digest = hashlib.sha256(folded.encode("utf-8", "backslashreplace")).digest()[:16]
        if digest in self._exact:
            return "equal"
        if self._index is not None:
            sketch: Any = self._library.RMinHash(num_perm=_NUM_PERM, seed=1)
            sketch.update([folded[at : at + _LETTERS] for at in range(max(1, len(folded) - _LETTERS + 1))])
            if any(sketch.jaccard(self._kept[at]) >= self._near for at in self._index.query(sketch)):
                return "near"
            self._index.insert(len(self._kept), sketch)
            self._kept.append(sketch)
        self._exact.add(digest)
        return ""


def _import_library() -> Any:
    try:
        import rensa  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise LibraryMissing(
            "prompts.near_duplicates: needs rensa, which is not installed: pip install 'spanwise[generate]'"
        ) from None
    return rensa
