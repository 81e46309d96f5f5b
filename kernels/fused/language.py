"""The Triton language as the kernels use it: a `jit` with a type, constants, exponents and logarithms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from kernels.contract import LOG_P_FLOOR

if TYPE_CHECKING:

    def jit(function: Any = None, **options: Any) -> Any:
        """Type triton.jit, whose own annotations say that a call never returns."""
else:
    jit = triton.jit

FLOOR = tl.constexpr(LOG_P_FLOOR)
# Below every logit that is not -inf, and finite: a tile that is masked out as a whole must not make inf - inf.
LOWEST = tl.constexpr(-1.0e30)
TINY = tl.constexpr(1.1754944e-38)  # smallest normal fp32
LOG2E = tl.constexpr(1.4426950408889634)  # 2^x is the instruction; e^x costs more than a multiplication on top


@jit
def power(x, T: tl.constexpr):
    """Compute x^T for T in {1, 2, 3, 4}: e^s from e^(s/T) with multiplications in place of a second exponential."""
    if T == 1:
        return x
    elif T == 2:
        return x * x
    elif T == 3:
        return x * x * x
    else:
        return (x * x) * (x * x)


@jit
def exps(x, inv_t, T: tl.constexpr):
    """Compute e^x and e^(x/T); T = 0 stands for a temperature known only at run time."""
    if T == 0:
        return tl.exp2(x * LOG2E), tl.exp2(x * (inv_t * LOG2E))
    else:
        tempered = tl.exp2(x * (LOG2E / T))
        return power(tempered, T), tempered


@jit
def log_of_rest(kept):
    """Compute log(1 - kept) to full precision, also of a kept mass that 1 - kept rounds off (W. Kahan's log1p)."""
    rest = 1.0 - kept
    return tl.where(rest == 1.0, -kept, tl.log(rest) * (kept / (1.0 - rest)))


@jit
def one_less_exp(x):
    """Compute 1 - e^-x for x >= 0, to full precision (W. Kahan's expm1)."""
    power = tl.exp(-x)
    return tl.where(power == 1.0, x, tl.where(power == 0.0, 1.0, (1.0 - power) * (x / -tl.log(power))))


INTERPRETED = not isinstance(power, triton.runtime.JITFunction)  # TRITON_INTERPRET=1
