"""Manifest of a cache: JSON files that carry their own hash and appear whole or not at all.

A file's text is canonical (keys sorted, no spaces, ASCII, one line) and its "sha256" is that of the canonical text
without it. Read back, it must be the very bytes that its content would be written as, so that no bit of it can change
unseen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kd.atomic_files import publish
from kd.teacher.cache.spec import CacheError, CacheSpec, Missing, check_spec

MANIFEST = "manifest.json"
FORMAT = "spanwise teacher cache 1"
SIDECAR_FORMAT = "spanwise teacher cache 1, one shard"
BLOCK = 1 << 16  # bytes of a shard to a checksum: where damage is, to this much
MAX_INDEX = 999_999  # of a shard: names have six digits
_NAME = r"^shard-\d{6}\.safetensors$"


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ShardInfo(_Strict):
    """Shard as it was written."""

    name: str = Field(pattern=_NAME)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    blocks: str = Field(pattern=r"^([0-9a-f]{8})*$")  # CRC-32 of each 64 KiB, in hex
    records: int = Field(ge=0)
    rows: int = Field(ge=0)


class _Spec(_Strict):
    kind: str
    vocab_size: int
    id_bits: int
    temperatures: list[float]
    num_draws: int | None
    top_k: int | None
    precision: str
    has_entropy: bool


class _Missing(_Strict):
    key: str = Field(pattern=r"^[0-9a-f]{32}$")
    record_id: str
    reason: str


class Unreadable(CacheError):
    """Manifest or sidecar that is not there, is damaged, or is of another version of the format."""


class Manifest(_Strict):
    """Content of manifest.json of a finished cache; a sidecar has one shard alone and its own format."""

    format: str
    spec: _Spec
    identity: dict[str, str]
    shards: list[ShardInfo]
    missing: list[_Missing]

    @property
    def cache_spec(self) -> CacheSpec:
        """Spec of the cache."""
        s = self.spec
        return CacheSpec(s.kind, s.vocab_size, tuple(s.temperatures), s.num_draws, s.top_k, s.precision, s.has_entropy)

    @model_validator(mode="after")
    def _of_one_cache(self) -> Manifest:
        if check_spec(self.cache_spec).id_bits != self.spec.id_bits:
            raise ValueError(f"id_bits is {self.spec.id_bits} at a vocabulary of {self.spec.vocab_size}")
        if self.format == FORMAT and any(info.name != shard_name(index) for index, info in enumerate(self.shards)):
            raise ValueError("shards are not numbered from 0")
        return self


def shard_name(index: int) -> str:
    """Return the file name of shard `index`."""
    return f"shard-{index:06d}.safetensors"


def make(
    spec: CacheSpec, identity: dict[str, str], shards: Sequence[ShardInfo], missing: Sequence[Missing] = ()
) -> Manifest:
    """Make the manifest of a cache. Raises CacheError for an identity that is not all text."""
    fields = spec._asdict() | {"temperatures": list(spec.temperatures), "id_bits": spec.id_bits}
    named = [_Missing(key=m.key.hex(), record_id=m.record_id, reason=m.reason) for m in missing]
    try:
        return Manifest(format=FORMAT, spec=_Spec(**fields), identity=identity, shards=list(shards), missing=named)
    except ValidationError as error:
        raise CacheError(f"the cache cannot be described: {_shown(error)}") from error


def make_sidecar(
    spec: CacheSpec, identity: dict[str, str], info: ShardInfo, missing: Sequence[Missing] = ()
) -> Manifest:
    """Make the sidecar, which stands beside one shard until all are there; `missing`: of its records."""
    return make(spec, identity, [], missing).model_copy(update={"format": SIDECAR_FORMAT, "shards": [info]})


def cache_digest(spec: CacheSpec, identity: dict[str, str]) -> str:
    """Hash spec and identity to the 32 hex digits by which a shard names its cache."""
    return _short(make(spec, identity, []).model_dump())


def content_of(manifest: Manifest) -> dict[str, str]:
    """Summarise the content of a finished cache that training depends on; checkpoints keep it.

    Neither the folder nor the reasons of the missing are content. Another cut into shards is other content: telling
    that it is not would take reading all of them.

    Returns:
        "signal": hash of spec, identity and every byte of the shards (named so in checkpoints of every version);
        "missing": number and hash of the keys of records without targets.
    """
    keys = sorted(m.key for m in manifest.missing)
    said = {
        "spec": manifest.spec.model_dump(),
        "identity": manifest.identity,
        "shards": [info.sha256 for info in manifest.shards],
    }
    return {"signal": _short(said), "missing": f"{len(keys)} ({_short(keys)})"}


def write(path: Path, manifest: Manifest) -> None:
    """Publish `manifest` at `path`, replacing the file there. Raises OSError; `path` is then as it was."""
    content = manifest.model_dump()
    publish(path, _text(content | {"sha256": hashlib.sha256(_text(content)).hexdigest()}) + b"\n")


def read(path: Path, file_format: str = FORMAT) -> Manifest:
    """Read the manifest, or with SIDECAR_FORMAT the sidecar, at `path`.

    Raises:
        Unreadable: it is not there, is damaged, or is of another version of the format.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise Unreadable(f"{path} is no file: move it away, and capture the cache again")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise Unreadable(
            f"{path} is not there: teacher.cache.path names no finished cache; write it, or go on writing it, with "
            "launch/capture.py"
        ) from None
    except OSError as error:
        raise Unreadable(
            f"{path} cannot be read ({error.strerror}): mend that, or change teacher.cache.path"
        ) from error
    try:
        content = json.loads(raw)
        if not isinstance(content, dict) or _text(content) + b"\n" != raw:
            raise ValueError("its text is not as it was written")
        digest = content.pop("sha256", None)
        if hashlib.sha256(_text(content)).hexdigest() != digest:
            raise ValueError("it does not have the SHA-256 that it was written with")
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path} is damaged ({error}): restore it, or capture the cache again") from error
    if content.get("format") != file_format:
        raise Unreadable(
            f"{path} is of format {content.get('format')!r} and this program reads {file_format!r}: capture the cache "
            "again"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise Unreadable(f"{path} says what no cache can be ({_shown(error)}): capture the cache again") from error


def describe_differences(ours: Manifest, theirs: Manifest) -> str:
    """Write 'key was X and is Y' for each key of spec and identity that differs, X being theirs, the cache's.

    Returns:
        The list in words; "" where nothing differs.
    """
    was, now = ({**m.spec.model_dump(), **{f"identity {k}": v for k, v in m.identity.items()}} for m in (theirs, ours))
    return "; ".join(
        f"{k} was {was.get(k)!r} and is {now.get(k)!r}"
        for k in sorted(was.keys() | now.keys())
        if was.get(k) != now.get(k)
    )


def _text(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


def _short(content: Any) -> str:
    """Hash canonical JSON to 32 hex digits."""
    return hashlib.sha256(_text(content)).hexdigest()[:32]


def _shown(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
