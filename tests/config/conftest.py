"""Fixtures of the configuration's tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write
