"""Paths as a user gives them, and the identity of the file that each names."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

_LONGEST_NAME, _LONGEST_PATH = 255, 4096  # of Linux's file systems


def expand_path(text: str) -> str:
    """Write a path out: `~` and `~name` at its beginning are home folders, as a shell has them.

    Raises:
        ValueError: it is blank, no text in UTF-8, has a NUL byte or a name that is longer than a disk takes, or no
            user has that name.
    """
    if not text.strip():
        raise ValueError("a path is needed here, and this is blank")
    if "\0" in text:
        raise ValueError("a path has no NUL byte in it: remove it")
    if not is_text(text):
        raise ValueError("a path is text in UTF-8, and this has other bytes: rename what it names")
    longest = max(len(name.encode()) for name in text.split("/"))
    if longest > _LONGEST_NAME:
        raise ValueError(
            f"has a name of {longest:,} bytes in it, and no file's has more than {_LONGEST_NAME}: shorten it"
        )
    if len(text) >= _LONGEST_PATH:
        raise ValueError(f"a path has fewer than {_LONGEST_PATH} characters: give a shorter one")
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise ValueError(f"no user {text.split('/')[0][1:]!r} is known here: write ./{text} if the name is meant")
    return expanded


def is_text(path: str) -> bool:
    """Tell whether a path can be written in UTF-8, as every report of it is."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def path_option(text: str) -> Path:
    """Read the path of a command-line option; the `type` of argparse."""
    try:
        return Path(expand_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def identify(path: str | os.PathLike) -> tuple:
    """Return what is equal for two paths where they name the same file: by hard link, symbolic link or spelling.

    A file that is not there yet is told by the folder that it would be in, and its name.
    """
    place, missing = Path(os.path.realpath(path)), ()
    while True:
        try:
            found = place.stat()
            return (found.st_dev, found.st_ino, *missing)
        except OSError:
            if place == place.parent:
                return (str(path),)
            place, missing = place.parent, (place.name, *missing)
