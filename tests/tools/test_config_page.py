"""The page of configuration keys: every key of the schema with its type, range, default and text."""

from __future__ import annotations

from kd.config.schema import RunConfig
from tools.config_page import MARKER, on_page_markdown, sections_in

PAGE = on_page_markdown(f"# Configuration\n\n{MARKER}\n")


def keys(section, prefix=""):
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        for below in sections_in(field.annotation):
            yield from keys(below, f"{prefix}{name}.")


def test_every_key_is_there_with_its_text():
    for key, field in keys(RunConfig):
        if "." in key:
            assert f"{{ #{key} }}" in PAGE
            assert field.description in PAGE


def test_a_key_has_its_type_range_and_default():
    entry = PAGE[PAGE.index("{ #teacher.endpoint.concurrency }") :].split("####")[0]
    assert "whole number, at least 1, at most 256 · default `8`" in entry
    entry = PAGE[PAGE.index("{ #training.steps }") :].split("####")[0]
    assert "whole number, at least 1, at most 1,000,000,000 · **required**" in entry


def test_choices_of_a_registry_are_listed():
    entry = PAGE[PAGE.index("{ #data.stages.train.format }") :].split("####")[0]
    assert "one of `chat`, `chatml`, `sharegpt`" in entry and "optional" in entry


def test_a_page_without_the_marker_stays_as_it_is():
    assert on_page_markdown("# Quickstart") == "# Quickstart"
