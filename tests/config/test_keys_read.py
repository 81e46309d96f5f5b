"""Every configuration key is read somewhere: a key that nothing reads would change nothing, and say nothing."""

from __future__ import annotations

import ast
from pathlib import Path

from kd.config import schema
from kd.config.problems import all_keys
from kd.config.schema import RunConfig
from kd.config.sections.generation import GenerationConfig

READ_RAW = ("run.extensions", "extensions")  # kd/config/load.py imports them before the schema sees the file
KD = Path(__file__).resolve().parents[2] / "kd"


def unread_keys() -> list[str]:
    """Keys whose name is an attribute nowhere in kd/ outside of kd/config."""
    read: set[str] = set()
    for path in KD.rglob("*.py"):
        if path.parent != KD / "config" or path.name in ("derived.py", "defaults.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    keys = [key for model in (RunConfig, GenerationConfig) for key in all_keys(model) if key not in READ_RAW]
    return [key for key in keys if key.rpartition(".")[2] not in ("*", *read)]


def test_every_key_is_read():
    assert not unread_keys()


def test_a_key_that_nothing_reads_is_named(monkeypatch):
    monkeypatch.setitem(schema.Loss.model_fields, "w_nobody", schema.Loss.model_fields["w_tool"])
    assert unread_keys() == ["loss.w_nobody"]
