"""Covering arrays: a few configurations in the place of all, with every combination of so many choices in one."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Sequence


def covering(rows: Sequence[tuple[Hashable, ...]], strength: int) -> list[int]:
    """Choose places of rows that together hold every `strength` values which any row has in its columns; greedily few.

    Example, strength 2, rows (a, 0, x), (a, 1, y), (b, 0, y), (b, 1, x), (a, 0, y): the first four hold every pair of
    values that occurs, (a, 0, y) adds none, so [0, 1, 2, 3].
    """

    def combinations(row):
        return set(itertools.combinations(enumerate(row), strength))

    # A row's worth only falls as others are taken: what it was last found to be is a bound, and most need no second
    # look.
    queue = [(-len(combinations(row)), place) for place, row in enumerate(rows)]
    heapq.heapify(queue)
    held, taken = set(), []
    while queue:
        _, place = heapq.heappop(queue)
        worth = len(combinations(rows[place]) - held)
        if worth == 0:
            continue
        if queue and -queue[0][0] > worth:
            heapq.heappush(queue, (-worth, place))
        else:
            held |= combinations(rows[place])
            taken.append(place)
    return sorted(taken)
