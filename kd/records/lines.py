"""Raw lines: the records of one data file, whatever holds them, with bounded memory.

    JSON lines            one record a line (.jsonl, and .json as BFCL writes it)
    JSON                  an array of records, or objects one after another over several lines (.json)
    gzip, bzip2, xz, zstd any of these, compressed; recognised by the file's first bytes, not by its name
    Parquet, Arrow        rows, read by the `datasets` package

A line is never read beyond MAX_RECORD_BYTES: the rest of a longer one is passed over in pieces.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kd.paths import is_text
from kd.records.checks import MAX_RECORD_BYTES, DataError, say_too_long
from kd.records.columns import holds_null

try:
    from compression import zstd  # pyright: ignore[reportMissingImports] (from Python 3.14 on)
except ImportError:
    try:
        from backports import zstd  # pyright: ignore[reportMissingImports] (optional)
    except ImportError:
        zstd = None

HEADER = "__header__"  # key of a first line that says what a file is, and is no record
_ZSTD_ERRORS = () if zstd is None else (zstd.ZstdError,)
_CHUNK = 1 << 18
_BOM = b"\xef\xbb\xbf"
_STRUCTURE = re.compile(rb'\\.|["\n{}\[\]]', re.DOTALL)
_MAX_STACK = 4096  # brackets whose kind is remembered; what nests deeper is refused anyway
_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_PARQUET, _ARROW = b"PAR1", b"ARROW1\x00\x00"
_NULLS = (
    "arguments is a struct with a null, Arrow writes the same for an argument that is absent, and no tools are offered "
    "whose schemas could tell the two apart; offer the tools, or store arguments as JSON text"
)
_OFFERED = ("tools", "functions", "tool_defs", "function")
_EXTRA = "install it with: pip install 'spanwise[data]'"


def is_header(data: Any) -> bool:
    """Tell whether a file's first line says what the file is."""
    return isinstance(data, dict) and HEADER in data


class Line(NamedTuple):
    """One record's bytes, a row of Parquet or Arrow as JSON. `fault` says why they cannot be read; then `raw` is a part
    of them.
    """

    number: int  # of its first line, from 1; of the row in Parquet and Arrow
    raw: bytes
    fault: str = ""
    offset: int | None = None  # in the stream, of a file with one record a line


def read_lines(path: str | Path) -> Iterator[Line]:
    """Yield every line of a file that is not blank, in order.

    Raises:
        DataError: no such file, or a package that its format needs is missing. Damage further in is a Line with a
            fault.
    """
    path = Path(path)
    check_file(path)
    with open_data(path) as file:
        kind = _rows_kind(file)
        if kind:
            yield from _rows(path, kind)
            return
        number = 0
        try:
            with _open_stream(file, path) as stream:
                layout = _find_layout(stream, path)
                for line in _json_lines(stream) if layout is None else _json_values(stream, layout):
                    number = line.number
                    yield line
        except (EOFError, OSError, zlib.error, lzma.LZMAError, *_ZSTD_ERRORS) as error:
            yield Line(number + 1, b"", f"the file is damaged or cut off here: {error}")


def open_data(path: Path) -> io.BufferedReader:
    """Open a data file. Raises DataError where it is gone, or may not be read."""
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; put the file back, or mend its rights") from None


def check_file(path: Path) -> None:
    """Check that a data file is there. Raises DataError where it is not, or is no plain file."""
    if not is_text(str(path)):
        raise DataError(f"{str(path)!a}: its name is no text in UTF-8: rename it")
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name its files, as in {path}/*.jsonl")
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is a pipe or device, and data is read more than once: write it to a file")
    if not path.is_file():
        raise DataError(
            f"{path}: no such data file; check data.* in the config (paths are relative to where you start the run)"
        )


def is_plain_lines(path: str | Path) -> bool:
    """Tell whether each record is a line of the file's own bytes, so that it can be read again by its offset."""
    with open_data(Path(path)) as file:
        head = file.read(8)
        file.seek(0)
        if head.startswith((_GZIP, _BZIP2, _XZ, _ZSTD)) or _rows_kind(file):
            return False
        return _find_layout(file, Path(path)) is None


def _rows_kind(file: io.BufferedReader) -> str | None:
    head = file.read(8)
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - 4, 0))
    tail = file.read(4)
    file.seek(0)
    return "parquet" if head.startswith(_PARQUET) and tail == _PARQUET else "arrow" if head == _ARROW else None


def _open_stream(file: io.BufferedReader, path: Path) -> io.BufferedReader:
    head = file.read(8)
    file.seek(0)
    if head.startswith(_GZIP):
        return io.BufferedReader(gzip.GzipFile(fileobj=file))
    if head.startswith(_BZIP2):
        return io.BufferedReader(bz2.BZ2File(file))
    if head.startswith(_XZ):
        return io.BufferedReader(lzma.LZMAFile(file))
    if head.startswith(_ZSTD):
        if zstd is None:
            raise DataError(f"{path}: zstd files need Python 3.14 or the package backports.zstd; {_EXTRA}")
        return io.BufferedReader(zstd.ZstdFile(file))
    return file


def _find_layout(stream: io.BufferedReader, path: Path) -> str | None:
    """Return "array" or "objects" where a .json file is not one record a line, else None."""
    if ".json" not in path.suffixes:
        return None
    start = stream.peek(_CHUNK)[:_CHUNK].removeprefix(_BOM).lstrip()
    if start.startswith(b"["):
        return "array"
    first = start.partition(b"\n")[0].strip()
    return "objects" if start.startswith(b"{") and b"\n" in start and not first.endswith(b"}") else None


def _json_lines(stream: BinaryIO) -> Iterator[Line]:
    number = offset = 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number, began = number + 1, offset
        offset += len(line)
        if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            head = line[:_CHUNK]
            del line
            while rest := stream.readline(_CHUNK):
                offset += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield Line(number, head, say_too_long())
        elif line.strip():
            yield Line(number, line, offset=began)


def _json_values(stream: BinaryIO, layout: str) -> Iterator[Line]:
    """Yield the elements of an array, or objects one after another, told apart by their brackets alone: a broken one is
    still one element, and those after it are read.
    """
    base = 1 if layout == "array" else 0
    nest, number, began, in_string = _Nest(), 1, 1, False
    element, gap, held = bytearray(), bytearray(), b""
    overlong = False

    def between() -> Iterator[Line]:  # what stands between elements and is neither a comma nor a space
        text = bytes(gap).removeprefix(_BOM).strip(b" \t\r\n,")
        gap.clear()
        if text:
            yield Line(number, text)

    while chunk := held + stream.read(_CHUNK):
        odd = (len(chunk) - len(chunk.rstrip(b"\\"))) % 2
        if odd and len(chunk) > len(held):
            chunk, held = chunk[:-1], b"\\"  # the byte it escapes is in the next piece
        else:
            held = b""
        done = 0
        for match in _STRUCTURE.finditer(chunk):
            at, char = match.start(), match.group()
            if char[-1:] == b"\n":
                number += 1
            elif char == b'"':
                in_string = not in_string
            elif in_string or len(char) > 1:
                continue
            elif char in b"{[":
                if nest.depth == base:
                    gap += chunk[done:at]
                    yield from between()
                    done, began, overlong = at, number, False
                elif nest.depth < base:
                    done = at + 1  # the array's own bracket
                nest.open(char)
            else:
                inside = nest.depth > base
                nest.close(char, base if inside else 0)
                if inside and nest.depth <= base:
                    element += chunk[done : at + 1]
                    overlong |= len(element) > MAX_RECORD_BYTES
                    yield Line(
                        began, bytes(element[:_CHUNK] if overlong else element), say_too_long() if overlong else ""
                    )
                    element.clear()
                    done = at + 1
                elif not inside and nest.depth < base:  # the array's own: what follows is no part of it
                    gap += chunk[done:at]
                    yield from between()
                    gap += chunk[at + 1 :]
                    done = len(chunk)
                    while (more := stream.read(_CHUNK)) and len(gap) < MAX_RECORD_BYTES:
                        gap += more
                    break
        rest = element if nest.depth > base else gap
        rest += chunk[done:]
        if len(rest) > MAX_RECORD_BYTES:
            overlong = True
            del rest[_CHUNK:]
    if nest.depth > base:
        yield Line(began, bytes(element[:_CHUNK]), "the file ends inside this record")
    else:
        yield from between()


class _Nest:
    """Open brackets by kind. A closing one closes the nearest of its kind above `floor`, and nothing where there is
    none.
    """

    def __init__(self):
        self._kinds, self._deeper = bytearray(), 0

    @property
    def depth(self) -> int:
        return len(self._kinds) + self._deeper

    def open(self, char: bytes) -> None:
        if len(self._kinds) < _MAX_STACK:
            self._kinds += b"}" if char == b"{" else b"]"
        else:
            self._deeper += 1

    def close(self, char: bytes, floor: int) -> None:
        if self._deeper:
            self._deeper -= 1
        elif (at := self._kinds.rfind(char, floor)) >= 0:
            del self._kinds[at:]


def _rows(path: Path, kind: str) -> Iterator[Line]:
    try:
        import datasets  # pyright: ignore[reportMissingImports] (optional)
    except ImportError:
        raise DataError(f"{path}: Parquet and Arrow files need the package datasets; {_EXTRA}") from None
    number = 0
    try:
        for number, row in enumerate(
            datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True), 1
        ):
            raw = json.dumps(row, default=str).encode()
            fault = say_too_long(len(raw)) if len(raw) > MAX_RECORD_BYTES else ""
            if not any(row.get(key) for key in _OFFERED) and _null_argument(row):
                fault = fault or _NULLS
            yield Line(number, raw[:_CHUNK] if fault else raw, fault)
    except (OSError, ValueError) as error:
        yield Line(number + 1, b"", f"the file is damaged or cut off here: {error}")


def _null_argument(value: Any) -> bool:
    if isinstance(value, dict):
        arguments = value.get("arguments")
        return isinstance(arguments, dict) and holds_null(arguments) or any(map(_null_argument, value.values()))
    return isinstance(value, list) and any(map(_null_argument, value))
