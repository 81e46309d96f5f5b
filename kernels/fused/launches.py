"""Launches of the dense kernel: the choice among three, and the layout of each (block, warps, programs).

    row          one program a row. Any divergence, any GPU.
    streamed     several programs a row, two sweeps, the second a few rows behind the first: what is between the two
                 sweeps stays within L2, at any vocabulary. 6 bytes a logit of HBM, 10 of L2.
    cooperative  several programs a row, which hold their logits in registers while they exchange sums: 6 bytes of both.

The last two, the *split* launches, have programs that wait for one another, on CUDA devices only. They exist for the
gradient of forward_kl and of cross-entropy alone; without a gradient one sweep is all there is. impl="auto" uses them
only where PROVEN says that tests/gpu passed. SPANWISE_DENSE_LAUNCH=row|streamed|cooperative overrides that for a whole
process, wherever the launch exists (SPANWISE_DENSE_FORM, its former name, is read as well), and
`dense_rows(launch=...)` for one call.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.contract import Options, RowWeights
from kernels.divergences import kind_of
from kernels.fused.language import INTERPRETED

LAUNCHES = ("row", "streamed", "cooperative")
# Architectures (as in Device.arch) on which tests/gpu/test_cooperative_gpu.py passed: none so far. Add one with the
# run's date in LOG.md.
PROVEN: dict[str, frozenset[str]] = {"streamed": frozenset(), "cooperative": frozenset()}
_OVERRIDES = ("SPANWISE_DENSE_LAUNCH", "SPANWISE_DENSE_FORM")  # the first that is set counts

# (warps, groups a thread, programs an SM). Row launch: 32 warps an SM in each, and one group of 16 bytes of student and
# of teacher a thread, which leaves every sweep within 64 registers. Fewer programs are fewer rows between their two
# sweeps, so more of the second comes from L2.
ROW_SHAPES = ((8, 1, 4), (16, 1, 2), (32, 1, 1))
# Shapes of reverse_kl from sm_100 on: it spills with 64 registers and does not with 80, which are 24 warps an SM at
# most.
ROOMY_ROW_SHAPES = ((8, 1, 3), (16, 1, 1))
# The split launches pay for every part and thread: the more logits a thread has the better, within registers and L2.
STREAMED_SHAPE = (4, 4, 2)
STREAMED_PART_BYTES = 32768  # of one operand
COOPERATIVE_SHAPE = (4, 4, 2)  # a part is one tile
REGISTERS_PER_SM = 65536
MOST_REGISTERS = 255  # that an instruction can name
MOST_PARTS = 64
INTERPRETER_BLOCK = 32768
NCCL_SMS = 16  # left to NCCL's kernels where there is more than one rank
# An H100's L2 is two halves, and a line may lie in both: count on a half, and leave some of that to the gradient.
L2_SHARE = 0.4


class Device(NamedTuple):
    """Device facts that a layout depends on. `arch`: sm_90, gfx942, or "interpreter"."""

    arch: str
    num_sms: int
    l2_bytes: int


class Launch(NamedTuple):
    """Layout of one launch."""

    name: str  # one of LAUNCHES
    block: int  # columns a tile
    num_warps: int
    registers: int | None  # a thread, at most; None where the compiler takes no such bound
    programs: int  # of split launches, at most; 0: as many as are resident
    tiles: int  # tiles a part
    lag: int  # rows between a row's two sweeps
    device: Device
    row_bytes: int  # of student and teacher
    group: int  # columns a thread loads at once


def group_of(dtype: torch.dtype) -> int:
    """Return the columns in 16 bytes, which one thread loads at once."""
    return 16 // dtype.itemsize


def choose(
    device: torch.device,
    student: Tensor,
    teacher: Tensor | None,
    vocab: int,
    kind: int,
    gradient: bool,
    name: str | None = None,
) -> Launch:
    """Return the layout for these logits [N, V], with or without their gradient.

    Args:
        kind: of the divergence, 0 where kd is off.
        name: one of LAUNCHES; None takes the override, or the best launch that is proven here.

    Raises:
        ValueError: an unknown launch, or a split one where there is none.
    """
    dtypes = (student.dtype,) if teacher is None else (student.dtype, teacher.dtype)
    row_bytes = vocab * sum(dtype.itemsize for dtype in dtypes)
    group = min(group_of(dtype) for dtype in dtypes)
    where = device_facts(device)
    splits = gradient and kind == 0 and vocab < 1 << 24 and not where.arch.startswith("gfx")
    if name is None:
        name = override()
        if not splits:
            name = "row"
        elif not name:
            name = best_proven(where, row_bytes)
    elif name not in LAUNCHES or (name != "row" and not splits):
        raise ValueError(
            f"launch {name!r}: choose one of {', '.join(LAUNCHES)}; the split ones are for the gradient of forward_kl "
            "or no kd, on CUDA"
        )
    if name == "streamed":
        return streamed_launch(where, row_bytes, vocab, group)
    if name == "cooperative":
        return cooperative_launch(where, row_bytes, vocab, group)
    return row_launch(where, row_bytes, group, kind)


def override() -> str:
    """Return the launch that the environment asks for, or "". Raises ValueError for one that is unknown."""
    for variable in _OVERRIDES:
        name = os.environ.get(variable, "")
        if name and name not in LAUNCHES:
            raise ValueError(f"{variable} is {name!r}: choose one of {', '.join(LAUNCHES)}, or unset it")
        if name:
            return name
    return ""


def best_proven(where: Device, row_bytes: int) -> str:
    """Name the launch with the least traffic. Rows that L2 holds one a program need no exchange."""
    if row_bytes * ROW_SHAPES[0][-1] * where.num_sms <= where.l2_bytes * L2_SHARE:
        return "row"
    for name in ("cooperative", "streamed"):
        if where.arch in PROVEN[name]:
            return name
    return "row"


def row_launch(where: Device, row_bytes: int, group: int, kind: int) -> Launch:
    """Lay out the shape with the most programs whose rows L2 holds, or else with the fewest."""
    roomy = kind == kind_of("reverse_kl") and where.arch.startswith("sm_1")
    shapes = ROOMY_ROW_SHAPES if roomy else ROW_SHAPES
    held = (shape for shape in shapes if shape[-1] * where.num_sms * row_bytes <= where.l2_bytes * L2_SHARE)
    shape = next(held, shapes[-1])
    return Launch("row", *layout(where.arch, shape, group), 0, 1, 0, where, row_bytes, group)


def streamed_launch(where: Device, row_bytes: int, vocab: int, group: int) -> Launch:
    """Lay out rows whose second sweep comes when the first is over: as many parts later as there are programs."""
    block, warps, registers = layout(where.arch, STREAMED_SHAPE, group)
    tiles = max(1, STREAMED_PART_BYTES // (block * 16 // group))
    while -(-vocab // (tiles * block)) > MOST_PARTS:
        tiles *= 2
    programs = STREAMED_SHAPE[-1] * where.num_sms
    lag = -(-programs // -(-vocab // (tiles * block))) + 1
    return Launch("streamed", block, warps, registers, programs, tiles, lag, where, row_bytes, group)


def cooperative_launch(where: Device, row_bytes: int, vocab: int, group: int) -> Launch:
    """Lay out parts of one tile; programs are counted when the kernel is compiled (programs_held)."""
    # The interpreter runs programs one after another: there, a row is one part or does not fit.
    programs = 1 if where.arch == "interpreter" else 0
    return Launch("cooperative", *layout(where.arch, COOPERATIVE_SHAPE, group), programs, 1, 0, where, row_bytes, group)


def layout(arch: str, shape: tuple[int, int, int], group: int) -> tuple[int, int, int | None]:
    """Return the columns of a tile, warps, and the registers that leave room for the shape's programs on an SM."""
    warps, groups, per_sm = shape
    if arch.startswith("gfx"):
        warps = min(warps, 16)  # a program has 1024 threads at most, in waves of 64
        return warps * 64 * group * groups, warps, None
    return warps * 32 * group * groups, warps, min(REGISTERS_PER_SM // (warps * 32 * per_sm) // 8 * 8, MOST_REGISTERS)


def takes_ptx(arch: str) -> bool:
    """Tell whether the kernels' few lines of PTX can be compiled: NVIDIA's instructions, on one of its GPUs."""
    return arch.startswith("sm_")


def options_of(launch: Launch) -> dict:
    """Return the compiler options; the interpreter takes and ignores them. Fusion of a product and a sum into one
    rounding is on, as it was by default until triton 3.10: 5 to 11 % fewer instructions a logit, and what the static
    proof counts."""
    return dict(num_warps=launch.num_warps, enable_fp_fusion=True) | (
        {} if launch.registers is None else dict(maxnreg=launch.registers)
    )


@functools.cache
def device_facts(device: torch.device) -> Device:
    """Read the facts of a device once a process; of a CPU, those of the interpreter."""
    if device.type != "cuda":
        return Device("interpreter", 2, 1 << 20)
    found = torch.cuda.get_device_properties(device)
    arch = getattr(found, "gcnArchName", "").split(":")[0] if torch.version.hip else f"sm_{found.major}{found.minor}"
    return Device(arch, found.multi_processor_count, found.L2_cache_size)


class Compiled(NamedTuple):
    """One compilation that a launch can ask for: see tools/kernel_proof/static_proof.py."""

    kernel: str
    constants: dict  # but for the terms and the temperature
    options: dict


def launchable(arch: str, dtype: torch.dtype, kind: int | None, gradient: bool) -> Iterator[Compiled]:
    """List every layout that the functions above can choose on an architecture, for the static proof. kind None: kd is
    off.
    """
    where, group, vocab = Device(arch, 132, 50 << 20), group_of(dtype), 151936
    seen = []
    for row_bytes in (0, where.l2_bytes // (3 * where.num_sms) // 2, where.l2_bytes):
        seen.append(row_launch(where, row_bytes, group, kind or 0))
    if gradient and not kind and not arch.startswith("gfx"):
        seen.append(streamed_launch(where, where.l2_bytes, vocab, group))
        seen.append(cooperative_launch(where, where.l2_bytes, vocab, group))
    for launch in {(x.name, x.block): x for x in seen}.values():
        constants = dict(KIND=kind or 0, BLOCK=launch.block, GROUP=group, PTX=takes_ptx(arch))
        if launch.name != "row":
            constants |= split_shape(launch, vocab)
        yield Compiled(launch.name, constants, options_of(launch))


def split_shape(launch: Launch, vocab: int) -> dict:
    """Return the compile-time constants of the split kernels that the row launch lacks."""
    num_parts = -(-vocab // (launch.block * launch.tiles))
    shape = dict(NUM_PARTS=1 << (num_parts - 1).bit_length())
    return shape | dict(TILES=launch.tiles) if launch.name == "streamed" else shape


def compiled_in(weights: RowWeights, options: Options) -> dict:
    """Return the choices that a kernel is compiled for: T (0: read at run time), which terms are on."""
    temperature = options.temperature if weights.kd is not None else 1.0  # nothing else is tempered
    constant = isinstance(temperature, float) and temperature in (1.0, 2.0, 3.0, 4.0)
    return dict(
        T=int(temperature) if constant else 0,
        HAS_KD=weights.kd is not None,
        HAS_TRUTH=weights.truth is not None,
        HAS_SPAN=weights.span is not None,
        HAS_HARD=weights.hard is not None,
        HAS_ENTROPY=options.entropy is not None,
    )


def interpretable(launch: Launch) -> Launch:
    """Widen the tiles for the interpreter, which pays by the operation and not by the lane."""
    return launch._replace(block=INTERPRETER_BLOCK) if INTERPRETED else launch


def on_device(device: torch.device) -> torch.cuda.device:
    """Make a device current: Triton launches there, which need not be where the tensors are."""
    return torch.cuda.device(device if device.type == "cuda" else -1)


def programs_held(num_regs: int, shared: int, num_warps: int, num_sms: int) -> int:
    """Count the resident programs: by registers (65536 an SM, given out 256 a warp), threads (2048 an SM) and shared
    memory (164 KB an SM at least, 1 KB lost to each program).
    """
    by_registers = 65536 // (-(-num_regs * 32 // 256) * 256) // num_warps
    by_threads = 2048 // (32 * num_warps)
    by_shared = (164 << 10) // (shared + 1024)
    return max(0, min(by_registers, by_threads, by_shared)) * max(0, num_sms)


def nccl_sms() -> int:
    """Count the SMs to leave to NCCL."""
    many = torch.distributed.is_available() and torch.distributed.is_initialized()
    return NCCL_SMS if many and torch.distributed.get_world_size() > 1 else 0
