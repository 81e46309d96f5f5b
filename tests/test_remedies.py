"""What is said of a file that cannot be written or read: its name, and what to do."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal

import pytest
import torch
from safetensors import SafetensorError

from kd.atomic_files import describe_failure


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EACCES, "Permission denied: change the rights to it, or name another place"),
        (errno.EPERM, "Operation not permitted: change the rights to it"),
        (errno.EROFS, "Read-only file system: mount its disk for writing"),
        (errno.EFBIG, r"File too large: raise the size that a file may have \(ulimit -f\)"),
        (errno.EMFILE, r"Too many open files: raise the number .* \(ulimit -n\)"),
        (errno.EISDIR, "Is a directory: a folder is where a file belongs: move it away"),
        (errno.ENOTDIR, "Not a directory: a file is where a folder belongs: move it away"),
        (errno.ENOENT, "No such file or directory: put it back, or name another place"),
        (errno.EIO, "Input/output error$"),
    ],
)
def test_the_machines_errors_have_a_remedy(tmp_path, number, remedy):
    error = OSError(number, os.strerror(number), str(tmp_path / "file"))
    assert re.search(rf"^{tmp_path}/file.*{remedy}", describe_failure(error))


def test_numbers_that_safetensors_tells_have_their_remedies(tmp_path):
    error = SafetensorError("Error while serializing: I/O error: File too large (os error 27)")
    said = describe_failure(error, tmp_path / "file")
    assert (
        said
        == f"{tmp_path}/file: File too large: raise the size that a file may have (ulimit -f), or name another disk"
    )


def test_torchs_silence_is_given_places_to_look_at(tmp_path):
    """Its own words were `unexpected pos 128 vs 0`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(RuntimeError) as raised:
            torch.save(torch.zeros(10_000), tmp_path / "weights.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    said = describe_failure(raised.value, tmp_path / "weights.pt")
    assert said.startswith(f"{tmp_path / 'weights.pt'} cannot be written, and torch.save") and "ulimit -f" in said
