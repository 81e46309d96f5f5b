"""Budget: what may still be spent, reserved before each request and settled after it.

    cost of an answer    its tokens as the server's `usage` tells them, times the prices
    bound of a request   the bytes of its body and overhead_tokens as prompt, max_new_tokens as completion: a token has
                         at least one byte

A request is sent when its bound fits into what is neither spent nor reserved; where it does not, and others are under
way, it waits for them to be settled below their bounds. An attempt that may have been answered and told no usage, or
one that cannot be, is charged at its bound.
"""

from __future__ import annotations

import asyncio
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, NamedTuple, TypeGuard

from kd.config.sections.generation import Spending
from kd.errors import SpanwiseError
from kd.generation.journal import Journal

UNIT = 10**12
"""Of the currency: costs are whole numbers of 1 / UNIT of it."""
_FAR = 4  # times its bound: a usage past that is no usage


class BudgetReached(SpanwiseError, RuntimeError):
    """No further request fits into the limit."""


class Usage(NamedTuple):
    """Tokens of one answer."""

    prompt: int
    completion: int


class Budget:
    """Account of one data set; all methods run on one event loop.

    Attributes:
        prompt_tokens, completion_tokens: told by the answers of this start.
        num_unknown: attempts of this start that were charged at their bounds.
        num_over: answers whose usage was over their bounds.
    """

    def __init__(self, spending: Spending, journal: Journal):
        self._journal = journal
        prices = spending.prompt_price, spending.completion_price
        self._prices = [_to_units(price, UNIT // 10**6) for price in prices]
        limit = spending.limit
        self._limit = None if limit is None else int((Decimal(str(limit)) * UNIT).to_integral_value(ROUND_FLOOR))
        self.overhead = spending.overhead_tokens
        self._reserved = 0
        self._waiting: list[asyncio.Future[None]] = []
        self.reached = False
        self.prompt_tokens = self.completion_tokens = self.num_unknown = self.num_over = 0

    @property
    def spent(self) -> float:
        """Spent by all starts, in the currency."""
        return self._journal.spent / UNIT

    def bound(self, usage: Usage) -> int:
        """Return what tokens cost, in units."""
        return usage.prompt * self._prices[0] + usage.completion * self._prices[1]

    async def reserve(self, most: Usage) -> int:
        """Reserve the bound of a request, and return the number of the reservation.

        Raises:
            BudgetReached: it does not fit, and nothing is under way that could make room.
        """
        cost = self.bound(most)
        while self._limit is not None and self._journal.spent + self._reserved + cost > self._limit:
            if not self._reserved:
                self.reached = True
                raise BudgetReached("spending.limit: no further request fits into it: raise it")
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
        self._reserved += cost
        return self._journal.reserve(cost)

    def price(self, usage: Usage | None, most: Usage) -> int:
        """Return the cost of an answer with this usage, None where it tells none; it is counted."""
        if usage is None or usage.prompt > _FAR * most.prompt or usage.completion > _FAR * most.completion:
            self.num_unknown += 1
            return self.bound(most)
        self.prompt_tokens += usage.prompt
        self.completion_tokens += usage.completion
        if usage.prompt > most.prompt or usage.completion > most.completion:
            self.num_over += 1
            self.overhead += max(usage.prompt - most.prompt, 0)  # later bounds hold
        return self.bound(usage)

    def free(self, most: Usage) -> None:
        """Give a reservation back, once what it did cost is in the journal."""
        self._reserved -= self.bound(most)
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


def read_usage(answer: Any) -> Usage | None:
    """Read the usage of an answer; None where there is none, or one that no answer can have."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return None
    prompt, completion, total = (usage.get(key) for key in ("prompt_tokens", "completion_tokens", "total_tokens"))
    if not _is_count(prompt) or not _is_count(completion) or prompt < 1:
        return None
    return None if _is_count(total) and total != prompt + completion else Usage(prompt, completion)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _to_units(price: float, of: int) -> int:
    return int((Decimal(str(price)) * of).to_integral_value(ROUND_CEILING))
