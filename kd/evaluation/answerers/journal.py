"""Journal of what an endpoint answered, so that an evaluation that is stopped asks nothing twice.

Each rank writes a file of its own and reads those of all, so that another number of ranks can go on. Once the
evaluation is written the journal is removed: a server that serves other weights by then is asked anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kd.endpoint.chat import Chat
from kd.hashing import hash_text
from kd.toolcalls.json_values import encode_json

FOLDER = ".answers"  # in the evaluation's


class Journal:
    """Journal in the folder of an evaluation; what an earlier start left is read at once.

    Attributes:
        folder: that it is in.
        num_kept: answers of earlier starts.
    """

    def __init__(self, out: Path, rank: int = 0):
        self.folder, self._file = out / FOLDER, None
        self._own = self.folder / f"rank-{rank}.jsonl"
        self._kept: dict[str, Chat] = {}
        for path in self._list_files():
            for line in path.read_bytes().splitlines():
                found = _read_line(line)
                if found is not None:
                    self._kept[found[0]] = found[1]
        self.num_kept = len(self._kept)

    def find(self, url: str, body: dict[str, Any]) -> Chat | None:
        """Find the answer to a request; None where it was not answered."""
        return self._kept.get(_name(url, body))

    def keep(self, url: str, body: dict[str, Any], chat: Chat) -> None:
        """Write the answer to a request.

        Raises:
            OSError: it cannot be written.
        """
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._own.open("ab")
            self._file.write(b"\n")  # an earlier start may have been killed within a line
        self._file.write(encode_json({"request": _name(url, body), "answer": chat._asdict()}) + b"\n")
        self._file.flush()

    def remove(self) -> None:
        """Remove the files of all ranks; other files stay."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for path in self._list_files():
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _list_files(self) -> list[Path]:
        return sorted(self.folder.glob("rank-*.jsonl"))


def _name(url: str, body: dict[str, Any]) -> str:
    return hash_text(json.dumps([url, body], sort_keys=True))


def _read_line(line: bytes) -> tuple[str, Chat] | None:
    try:
        found = json.loads(line)
        answer = found["answer"]
        calls = [(name, arguments) for name, arguments in answer["calls"]]
        return found["request"], Chat(answer["text"], calls, answer["num_tokens"], answer["finished"])
    except (ValueError, KeyError, TypeError):  # empty, or cut by a kill
        return None
