"""Compiled kernels as numbers: registers, loops and accesses from SASS (NVIDIA's tools) or AMD's assembly.

Knows instructions, and nothing of our kernels.
"""

from __future__ import annotations

import itertools
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Loop(NamedTuple):
    """Instructions that are run again and again; `lines` are places in the kernel's listing."""

    lines: frozenset[int]
    num_instructions: int
    reads: Counter  # bytes of one access -> number of accesses of global memory
    writes: Counter
    asks: int  # lines asked of L2 for later reads, without waiting
    exps: int
    mufu: int  # all instructions of the special-function unit: exps, logarithms, reciprocals
    barriers: int
    shuffles: int


class Code(NamedTuple):
    """One kernel."""

    registers: int  # a thread
    stack: int  # bytes a thread
    spills: int  # instructions that move registers to or from the stack
    shared: int  # bytes a program
    num_instructions: int
    loops: list[Loop]


_SASS_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
# A loop of many instructions is left by a call that does not return.
_SASS_JUMP = re.compile(r"\b(?:BRA|CALL\.REL\.NOINC)\b.*?0x([0-9a-f]+)")
_SASS_END = re.compile(
    r"(EXIT|RET\S*|BRA(?:\.\w+)*\s+`?\(?(?:\.L_x_|0x))"
)  # without a predicate: what follows is not run next
_SASS_GLOBAL = re.compile(r"\b(LDG|STG)\.E(?:\.[A-Z0-9]+)*")
_SASS_WIDTH = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_AMD_GLOBAL = re.compile(r"\b(?:global|buffer|flat)_(load|store)_(\w+)")
_AMD_SPECIAL = re.compile(r"\bv_(?:exp|log|rcp|rsq|sqrt|sin|cos)_")
_AMD_WIDTH = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4}


def read_cubins(cubins: Sequence[bytes], arch: str, tools: Path) -> list[Code]:
    """Read cubins with one kernel each, for one architecture (sm_90). `tools`: the folder of cuobjdump and nvdisasm.

    nvdisasm takes a second to start and little to read, so it is given the instructions of all of them as one.
    """
    codes, usages = [instructions_of(cubin) for cubin in cubins], []
    ends = list(itertools.accumulate(map(len, codes)))
    with tempfile.TemporaryDirectory() as folder:
        cubin, binary = Path(folder, "kernel.cubin"), Path(folder, "instructions")
        for held in cubins:
            cubin.write_bytes(held)
            usages.append(_output_of(tools / "cuobjdump", "-res-usage", cubin))
        binary.write_bytes(b"".join(codes))
        listing = _output_of(tools / "nvdisasm", "-b", arch.upper().replace("_", ""), binary)
    lines = [[] for _ in cubins]
    which = 0
    for line in listing.split("\n"):
        found = _SASS_LINE.search(line)
        if found:
            while int(found[1], 16) >= ends[which]:
                which += 1
            lines[which].append(line)
    return [read_sass(usage, "\n".join(mine)) for usage, mine in zip(usages, lines)]


def _output_of(*command) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instructions_of(cubin: bytes) -> bytes:
    """Return the section .text.<kernel> of an ELF file of 64 bits.

    The fields are the header's e_shoff and Elf64_Shdr's (System V gABI, chapter 4). Raises ValueError where there is no
    kernel, or more than one.
    """
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, num_sections, of_names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + size * index) for index in range(num_sections)]
    names = sections[of_names][4]
    found = [(at, length) for name, _, _, _, at, length in sections if cubin[names + name :].startswith(b".text.")]
    if len(found) != 1:
        raise ValueError(f"a cubin with one kernel is wanted, this one has {len(found)}")
    return cubin[found[0][0] :][: found[0][1]]


def read_sass(usage: str, listing: str) -> Code:
    """Read `cuobjdump -res-usage` of a kernel, and its listing, wherever that starts."""
    found = _find(r"REG:(\d+) STACK:(\d+)", usage)
    lines = [(int(m[1], 16), m[2]) for m in _SASS_LINE.finditer(listing)]
    places = {at: index for index, (at, _) in enumerate(lines)}
    jumps = {
        index: places.get(int(jump[1], 16))
        for index, (_, text) in enumerate(lines)
        if (jump := _SASS_JUMP.search(text))
    }
    ends = {index for index, (_, text) in enumerate(lines) if _SASS_END.match(text)}
    spills = sum(bool(re.search(r"\b(LDL|STL)\b", text)) for _, text in lines)
    texts = [text for _, text in lines]
    loops = [_loop(texts, body, _sass_access) for body in _bodies(len(lines), jumps, ends)]
    return Code(int(found[1]), int(found[2]), spills, 0, len(lines), loops)


def _find(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"{pattern} is not in the compiler's output: it has another format than this file reads")
    return found


def read_amdgcn(assembly: str) -> Code:
    """Read the assembly of one kernel."""

    def number(name):
        return int(_find(rf"\.{name}:\s+(\d+)", assembly)[1])

    lines, labels, targets = [], {}, {}
    for text in assembly.split("\n"):
        label = re.match(r"(\.LBB\w+):", text)
        if label:
            labels[label[1]] = len(lines)
        elif text.startswith("\t") and not text.lstrip().startswith((".", ";")):
            jump = re.search(r"s_c?branch\w*\s+(\.LBB\w+)", text)
            if jump:
                targets[len(lines)] = jump[1]
            lines.append(text.split(";")[0].strip())
    jumps = {index: labels.get(label) for index, label in targets.items()}
    ends = {index for index, text in enumerate(lines) if text.startswith(("s_branch", "s_endpgm"))}
    loops = [_loop(lines, body, _amd_access) for body in _bodies(len(lines), jumps, ends)]
    spills = number("vgpr_spill_count") + number("sgpr_spill_count")
    return Code(number("vgpr_count"), number("private_segment_fixed_size"), spills, 0, len(lines), loops)


def _bodies(num_lines: int, jumps: dict[int, int | None], ends: set[int]) -> list[set[int]]:
    """The lines of each loop, wherever the compiler put them: it moves what is rarely run behind a loop, and a loop's
    end before it.

    Args:
        jumps: line -> the line it may jump to.
        ends: lines after which the next is not run.

    A depth-first search from the first line finds the ways back, whose target is among the lines it is still in; a loop
    is its target and all that reaches a way back without it (natural loops; Aho, Lam, Sethi, Ullman 2006, section 9.6).
    """
    after = [[] if line in ends or line + 1 >= num_lines else [line + 1] for line in range(num_lines)]
    for line, target in jumps.items():
        after[line] += [] if target is None else [target]
    before: list[list[int]] = [[] for _ in range(num_lines)]
    for line, following in enumerate(after):
        for other in following:
            before[other].append(line)
    back: dict[int, list[int]] = {}
    inside, seen, stack = set(), set(), [(0, False)]
    while stack:
        line, done = stack.pop()
        if done:
            inside.discard(line)
        elif line not in seen:
            seen.add(line)
            inside.add(line)
            stack.append((line, True))
            for other in after[line]:
                if other in inside:
                    back.setdefault(other, []).append(line)
                stack.append((other, False))
    bodies = []
    for first, ways in back.items():
        body, todo = {first}, list(ways)
        while todo:
            line = todo.pop()
            if line not in body:
                body.add(line)
                todo += before[line]
        bodies.append(body)
    return bodies


def widest_loops(code: Code, width: int) -> list[Loop]:
    """List the loops that read `width` bytes at once and have no loop within that does, in the order of their first
    lines. Where some compute exps, a loop without any is no sweep: ids of slots may be read as wide.
    """
    readers = sorted((loop for loop in code.loops if loop.reads[width]), key=lambda loop: min(loop.lines))
    readers = [loop for loop in readers if loop.exps] or readers
    return [loop for loop in readers if not any(other.lines < loop.lines for other in readers)]


def _loop(lines: list[str], places: set[int], access) -> Loop:
    reads, writes = Counter(), Counter()
    body = [lines[place] for place in sorted(places)]
    for text in body:
        found = access(text)
        if found is not None:
            (reads if found[0] == "read" else writes)[found[1]] += 1
    return Loop(
        lines=frozenset(places),
        num_instructions=len(body),
        reads=reads,
        writes=writes,
        asks=sum(bool(re.search(r"\bCCTL\.E\.P", text)) for text in body),
        exps=sum("MUFU.EX2" in text or "v_exp_f32" in text for text in body),
        mufu=sum("MUFU." in text or bool(_AMD_SPECIAL.search(text)) for text in body),
        barriers=sum(bool(re.search(r"\bBAR\b|s_barrier", text)) for text in body),
        shuffles=sum(bool(re.search(r"\bSHFL\b|ds_bpermute|ds_swizzle|_dpp", text)) for text in body),
    )


def _sass_access(text: str) -> tuple[str, int] | None:
    found = _SASS_GLOBAL.search(text)
    if found is None:
        return None
    width = next((_SASS_WIDTH[part] for part in found[0].split(".") if part in _SASS_WIDTH), 4)
    return "read" if found[1] == "LDG" else "write", width


def _amd_access(text: str) -> tuple[str, int] | None:
    found = _AMD_GLOBAL.search(text)
    if found is None:
        return None
    kind = found[2]
    width = _AMD_WIDTH.get(kind, 1 if "byte" in kind else 2)
    return "read" if found[1] == "load" else "write", width
