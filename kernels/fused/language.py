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
LN2 = tl.constexpr(0.6931471805599453)
FLOOR_BITS = tl.constexpr(LOG_P_FLOOR * 1.4426950408889634)  # FLOOR as an exponent of 2
LINE_BYTES = tl.constexpr(128)  # what L2 fetches at once
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # pyright: ignore[reportAttributeAccessIssue]


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
def bits_of(x, inv_t, T: tl.constexpr):
    """Compute x / T in bits: e^(x/T) is 2 to this."""
    if T == 0:
        return x * (inv_t * LOG2E)
    else:
        return x * (LOG2E / T)


@jit
def exps(x, inv_t, T: tl.constexpr):
    """Compute e^x and e^(x/T); T = 0 stands for a temperature known only at run time."""
    if T == 0:
        return tl.exp2(x * LOG2E), tl.exp2(x * (inv_t * LOG2E))
    else:
        tempered = tl.exp2(x * (LOG2E / T))
        return power(tempered, T), tempered


@jit
def fused_bits(x, shift, T: tl.constexpr):
    """Compute x / T in bits, less shift, rounded once: what `bits_of` does to a difference, in one instruction."""
    if INTERPRETED:  # its fma rounds twice
        return (x.to(tl.float64) * (LOG2E / T) - shift).to(tl.float32)
    else:
        return tl.fma(x, tl.full(x.shape, LOG2E / T, tl.float32), tl.zeros(x.shape, tl.float32) - shift)


@jit
def log2_of(x, PTX: tl.constexpr):
    """Compute log2 x by one instruction where there is one: off by 2^-22 at most, absolute near 1, else relative."""
    if PTX:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.log2(x)


@jit
def fp32_of(x, PTX: tl.constexpr):
    """Widen a tile to fp32; two bf16 of a register by one instruction each, which the compiler makes three."""
    if PTX and x.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=&r,=&r,r", [x], tl.float32, is_pure=True, pack=2
        )
    else:
        return x.to(tl.float32)


@jit
def fetch_ahead(pointers, column, stop, AGAIN: tl.constexpr):
    """Ask L2 for the lines of `pointers` where column < stop; no thread waits. AGAIN: they are read twice. PTX only."""
    ASK: tl.constexpr = "prefetch.global.L2::evict_last" if AGAIN else "prefetch.global.L2"  # pyright: ignore[reportAssignmentType]
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.lt.s32 p, $2, $3; @p " + ASK + " [$1]; mov.u32 $0, 0; }",  # pyright: ignore[reportArgumentType]
        "=r,l,r,r",
        [pointers, column, stop],
        tl.int32,
        is_pure=False,
        pack=1,
    )


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
