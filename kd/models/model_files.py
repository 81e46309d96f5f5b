"""Files of a saved model, checked before a library reads them: each error names the file and the remedy."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from kd.errors import SpanwiseError, first_line

HUB_SECONDS = 5.0  # for the hub to answer at all; what it then sends may take as long as it takes
_POINTER = b"version https://git-lfs"  # first bytes of what Git LFS leaves in place of a file
_MAX_HEADER = 100_000_000  # bytes; that of safetensors itself
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
COPY_AGAIN = "copy it again from where the model comes from"


class StudentError(SpanwiseError, ValueError):
    """Student, or model that it comes from or learns from, that cannot be read or made as asked."""


class ModelNotFound(StudentError):
    """Folder or hub id without a model, or one whose model is not on this machine."""


def find_file(path: str | os.PathLike, name: str, revision: str | None = None) -> Path | None:
    """Find where a file of a folder is, or would be, or a hub id's on this machine; None where the latter is not."""
    if Path(path).is_dir():
        return Path(path) / name
    known = try_to_load_from_cache(os.fspath(path), name, revision=revision)
    return Path(known) if isinstance(known, str) else None


def find_folder(
    path: str | os.PathLike, revision: str | None = None, *, key: str | None = None, local_files_only: bool = False
) -> Path | None:
    """Find the folder of a saved model on this machine; None where the hub must be asked, and answers.

    Args:
        path: folder or hub id. What looks like a path, or has another model's folder beside it, is never asked for.
        key: key of the YAML that names it, for messages.
        local_files_only: ask no network.

    Raises:
        ModelNotFound: no folder is there, and the hub was not asked, or does not answer; the message says which.
        StudentError: this user may not read the folder.
    """
    name, where = os.fspath(path), f"{key}: " if key else ""
    folder = Path(name)
    if folder.is_dir():
        if not os.access(folder, os.R_OK | os.X_OK):  # its files would seem to be missing
            raise StudentError(
                f"{where}{name!r} cannot be read (Permission denied): give this user the right to read it"
            )
        return folder
    if os.path.lexists(folder):
        raise ModelNotFound(
            f"{where}{name!r} is {_describe_kind(folder)}, and a model is a folder: give the folder that it is in"
        )
    if not _is_hub_id(name) or ("/" in name and folder.parent.is_dir()):
        near = difflib.get_close_matches(folder.name, _names_in(folder.parent), 1)
        meant = f"; did you mean {str(folder.parent / near[0])!r}?" if near else ""
        raise ModelNotFound(
            f"{where}{name!r}: no such folder is here, and the hub was not asked, as this is a path{meant}; paths are "
            f"relative to where you start the program, {Path.cwd()}"
        )
    if (known := find_file(name, "config.json", revision)) is not None:
        return known.parent
    not_here = f"{where}{name!r}: no such folder is here, the hub's model of this name is not on this machine, and"
    remedy = f"give a folder that save_pretrained wrote, or download it first (hf download {name})"
    if local_files_only or constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "this needs no network"
        raise ModelNotFound(f"{not_here} the hub was not asked ({why}): {remedy}")
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # of the session's own types, which change with huggingface_hub's versions
        raise ModelNotFound(
            f"{not_here} the hub ({constants.ENDPOINT}) does not answer ({first_line(error)}): {remedy}"
        ) from error
    return None


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith("~")


def _names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def read_json(file: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        StudentError: it is no file, cannot be read, or holds something else; the message names it.
    """
    raw = _read(file)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StudentError(f"{file}: no JSON ({first_line(error)}): {COPY_AGAIN}") from None
    if not isinstance(value, dict):
        raise StudentError(f"{file}: holds no JSON object: {COPY_AGAIN}")
    return value


def check_weights(folder: Path) -> dict[str, tuple[Path, list[int]]]:
    """Check that the weight files of a folder are there and whole, by their headers.

    Returns:
        For each tensor in safetensors its file and shape; empty for the older .bin files.

    Raises:
        StudentError: a file is missing, cut, a Git LFS pointer, or not to be read; the message names it.
    """
    index = next((folder / f"{name}.index.json" for name in _WEIGHTS if (folder / f"{name}.index.json").exists()), None)
    single = next((folder / name for name in _WEIGHTS if os.path.lexists(folder / name)), None)
    if single is None and index is None:
        raise StudentError(
            f"{folder}: no {_WEIGHTS[0]}, {_WEIGHTS[0]}.index.json or {_WEIGHTS[1]}: copy the model's weights there, "
            "or save it again with save_pretrained"
        )
    files = [single] if single is not None else _listed(folder, index)
    found: dict[str, tuple[Path, list[int]]] = {}
    for file in files:
        if file.suffix == ".safetensors":
            found |= {name: (file, shape) for name, shape in _read_header(file).items()}
        else:
            _read(file, len(_POINTER))
    return found


def _listed(folder: Path, index: Path | None) -> list[Path]:
    assert index is not None, "without a single file there is an index"
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise StudentError(f"{index}: has no weight_map of tensor to file: {COPY_AGAIN}")
    files = [folder / name for name in sorted(set(names.values()))]
    missing = [file for file in files if not os.path.lexists(file)]
    if missing:
        raise StudentError(
            f"{missing[0]}: no such file, and {index.name} names it ({len(missing)} of {len(files)} shards are "
            "missing): copy the missing ones from where the model comes from"
        )
    return files


def _read_header(file: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor of a safetensors file (https://huggingface.co/docs/safetensors: 8 bytes of
    length, a JSON header, the data).
    """
    size = file.stat().st_size
    length = int.from_bytes(_read(file, 8), "little")
    damaged = StudentError(f"{file}: damaged or cut short ({size:,} bytes): {COPY_AGAIN}")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise damaged
    try:
        header = json.loads(_read(file, 8 + length)[8:])
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        shapes = {name: tensor["shape"] for name, tensor in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise damaged from None
    if size != 8 + length + end:
        raise StudentError(
            f"{file}: {size:,} bytes, where its header promises {8 + length + end:,}; it is cut short or damaged: "
            f"{COPY_AGAIN}"
        )
    return shapes


def _read(file: Path, num_bytes: int = -1) -> bytes:
    """Read a plain file, or its first bytes. Raises StudentError where it is none, cannot be read, or is a pointer."""
    if os.path.lexists(file) and not file.is_file():
        raise StudentError(f"{file}: is {_describe_kind(file)}, no file: {COPY_AGAIN}")
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_POINTER))
            if start == _POINTER:
                raise StudentError(
                    f"{file}: a Git LFS pointer in place of the file: run `git lfs pull` where it was cloned"
                )
            stream.seek(0)
            return stream.read(num_bytes)
    except OSError as error:
        remedy = "give this user the right to read it" if isinstance(error, PermissionError) else COPY_AGAIN
        raise StudentError(f"{file}: cannot be read ({error.strerror}): {remedy}") from None


def _describe_kind(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which is not there"
    if path.is_dir():
        return "a folder"
    return "a file" if path.is_file() else "a socket, pipe or device"
