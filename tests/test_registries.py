"""The registry: names without imports, a user's own beside ours, and errors that list the choices."""

import sys

import pytest

from kd.errors import SpanwiseError
from kd.registry import Registry, UnknownName


def test_builtin_items_are_imported_when_they_are_looked_up(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    colours = Registry("colour space", {"hls": "colorsys:rgb_to_hls"})
    assert colours.names() == ("hls",) and "colorsys" not in sys.modules
    assert colours["hls"](1.0, 1.0, 1.0) == (0.0, 1.0, 0.0)


def test_a_name_is_registered_once():
    numbers: Registry[int] = Registry("number")
    assert numbers.register("one", 1) == numbers["one"] == 1
    with pytest.raises(SpanwiseError, match="number 'one' is registered already"):
        numbers.register("one", 2)
    numbers.unregister("one")
    assert "one" not in numbers


def test_an_unknown_name_is_told_the_choices():
    with pytest.raises(UnknownName, match="no number 'three': choose one of one, two"):
        Registry("number", {"one": "a:b", "two": "a:c"})["three"]
