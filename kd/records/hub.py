"""Data sets of the Hugging Face Hub: copied once to a file of JSON lines, which is then read as any other file.

An address stands wherever a file of records may:

    hub:org/name                                         its split `train`
    hub:org/name?split=test&config=multi&revision=v2     another split, of a configuration, at a commit, tag or branch

The copy lies in HF_HOME/spanwise and is made once for each address, a row in memory at a time. Its first line names the
commit that was read. Without a revision it is the newest commit of that day: pin it, or another machine trains on other
records.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kd.atomic_files import replacing
from kd.config.sections.hub_address import SCHEME, HubDataset, parse_address
from kd.errors import first_line
from kd.records.checks import DataError
from kd.records.lines import HEADER

_EXTRA = "install it with: pip install 'spanwise[data]'"


def local_file(text: str | Path) -> Path:
    """Return the file that a path or an address names; of an address its copy, which is made where there is none.

    Raises:
        DataError: the address is none, or the data set cannot be read; a copy that is there needs no network.
    """
    if not str(text).startswith(SCHEME):
        return Path(text)
    try:
        wanted = parse_address(str(text))
    except ValueError as error:
        raise DataError(str(error)) from None
    path = copy_of(wanted)
    if not path.exists():
        _copy(wanted, path)
    return path


def copy_of(wanted: HubDataset) -> Path:
    """Return the place of a data set's copy."""
    from huggingface_hub.constants import HF_HOME

    parts = (wanted.config or "default", wanted.split, wanted.revision or "newest")
    name = "@".join(quote(part, safe="[]%:") for part in parts)
    return Path(HF_HOME) / "spanwise" / wanted.name.replace("/", "--") / f"{name}.jsonl"


def _copy(wanted: HubDataset, path: Path) -> None:
    try:
        import datasets  # pyright: ignore[reportMissingImports] (optional)
    except ImportError:
        raise DataError(f"{wanted.address()}: data sets of the hub need the package datasets; {_EXTRA}") from None
    from filelock import FileLock
    from huggingface_hub import HfApi
    from tqdm import tqdm

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():  # another process made it
            return
        try:
            commit = HfApi().dataset_info(wanted.name, revision=wanted.revision).sha
            whole = wanted.split.isidentifier()  # a part of a split, train[:10%], cannot be streamed
            rows = datasets.load_dataset(
                wanted.name, wanted.config, split=wanted.split, revision=commit, streaming=whole
            )
            with replacing(path) as out:
                out.write(_line({HEADER: {"dataset": wanted._asdict(), "commit": commit}}))
                for row in tqdm(rows, desc=f"copying {wanted.address()}", unit="row", disable=None, leave=False):
                    out.write(_line(row))
        except Exception as error:  # the libraries raise what their transports, formats and checks do
            raise DataError(f"{wanted.address()}: {_explain(error, wanted)}") from None


def _line(row: Any) -> bytes:
    return (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode()


def _explain(error: Exception, wanted: HubDataset) -> str:
    kind, said = type(error).__name__, first_line(error)
    if kind in ("RepositoryNotFoundError", "GatedRepoError", "DatasetNotFoundError"):
        return f"the hub has no such data set, or it needs a token with access to it (HF_TOKEN): {said}"
    if kind == "RevisionNotFoundError":
        return f"it has no revision {wanted.revision!r}: give a commit, tag or branch that is there"
    if kind in ("OfflineModeIsEnabled", "ConnectError", "ConnectionError", "ConnectTimeout", "LocalEntryNotFoundError"):
        return (
            f"the hub cannot be reached ({said}), and no copy is at {copy_of(wanted)}: connect, or put the file there "
            "from another machine"
        )
    return f"it cannot be read: {kind}: {said}"
