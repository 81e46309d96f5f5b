"""Fewer rows, and no combination of values lost."""

import itertools

import pytest

from tools.kernel_proof.covering import covering


def combinations(rows, strength):
    return {found for row in rows for found in itertools.combinations(enumerate(row), strength)}


def test_the_docstrings_example():
    rows = [("a", 0, "x"), ("a", 1, "y"), ("b", 0, "y"), ("b", 1, "x"), ("a", 0, "y")]
    assert covering(rows, 2) == [0, 1, 2, 3]


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_every_combination_that_occurs_is_held(strength):
    rows = [row for row in itertools.product(range(4), range(3), range(5), range(3), (None, 1)) if row[0] or row[4]]
    places = covering(rows, strength)
    assert combinations([rows[place] for place in places], strength) == combinations(rows, strength)
    assert len(places) < len(rows) / 2
