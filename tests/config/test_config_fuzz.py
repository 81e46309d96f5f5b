"""Each key with values that nobody means: taken, or refused with place, key and remedy; never another exception."""

from __future__ import annotations

import pytest

from helpers.config_cases import GOOD
from kd.config.load import load_config
from kd.config.problems import ConfigError, all_keys

VALUES = [
    *("-1", "0", "1e308", "-1e308", "1" + "0" * 30, ".nan", ".inf", '""', '" "', "null", "[]", "[null]", "[[]]", "{}"),
    *(
        "{a: {b: 1}}",
        "true",
        "text",
        '"\\0"',
        '"\\ud800"',
        '"日本語"',
        '"a\\nb"',
        "[1, 2, 3]",
        "2024-01-01",
        "~nobody/x",
    ),
    *("~nobody/x", "'" + "x" * 5000 + "'", "!!binary a", "-0.0", "1e-320"),
]
KEYS = [key.replace("*", "0") for key in all_keys()]


@pytest.mark.parametrize("offset", range(3))
def test_values_that_nobody_means_are_taken_or_refused_in_one_way(write, offset):
    path = write(GOOD)
    for number, key in enumerate(KEYS):
        value = VALUES[(number * 7 + offset * 11) % len(VALUES)]
        try:
            load_config(path, [f"{key}={value}"])
        except ConfigError as error:
            head, *lines = str(error).splitlines()
            assert head.startswith(f"{path}: ") and lines
            for line in lines:
                place, _, said = line.strip().partition(": ")
                assert place.startswith(("--set ", f"{path}:")) and len(said.split()) > 3 and len(line) < 1000, line
