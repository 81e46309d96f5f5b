"""Static proof: kernels compiled ahead of time, without a GPU, and their machine code read.

    python -m tools.kernel_proof.static_proof --write           write the table into TABLE.md, between its markers
    python -m tools.kernel_proof.static_proof                   print the same table
    python -m tools.kernel_proof.static_proof --quick           one layout of each kernel and divergence; --arch,
                                                                --dtype, --kernel, --temperature, --terms and --slots
                                                                narrow or widen it as well
    python -m tools.kernel_proof.static_proof --all --cover 3   of all layouts, dtypes, temperatures, terms and slots,
                                                                those few that have every three choices together
    python -m tools.kernel_proof.static_proof --json            one JSON object a line, for the tests

Every layout that a launch can choose is compiled (launches.launchable, and the sparse kernel's own), with pointers and
strides marked as multiples of 16, as the JIT finds them for vocabularies of a multiple of 16 columns, and with a
vocab_size that is *not* one: widths are padded, tokenizers are not. Student and teacher have one dtype. Needs
TRITON_INTERPRET unset.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.divergences import names_by_kind
from kernels.fused import cooperative, dense, launches, sparse
from tools.kernel_proof.covering import covering
from tools.kernel_proof.machine_code import Code, Loop, read_amdgcn, read_cubins, widest_loops

TABLE = Path(__file__).with_name("TABLE.md")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHES = ("sm_80", "sm_90", "sm_100", "gfx942")
_ALL = dict.fromkeys(("HAS_TEACHER", "HAS_KD", "HAS_TRUTH", "HAS_SPAN", "HAS_HARD", "HAS_ENTROPY", "HAS_GRAD"), True)
_NONE = dict.fromkeys(_ALL, False)
# The sets of terms whose sweeps differ; "eval" is all of them without the gradient.
TERMS = {
    "all": _ALL,
    "kd": _NONE | dict(HAS_TEACHER=True, HAS_KD=True, HAS_GRAD=True),
    "ce": _NONE | dict(HAS_TRUTH=True, HAS_SPAN=True, HAS_GRAD=True),
    "hard": _NONE | dict(HAS_TEACHER=True, HAS_HARD=True, HAS_GRAD=True),
    "eval": _ALL | dict(HAS_GRAD=False),
}
_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
KERNELS = {
    "row": dense.dense_kernel,
    "streamed": cooperative.streamed_kernel,
    "cooperative": cooperative.cooperative_kernel,
    "sparse": sparse.sparse_kernel,
    "scale": dense.scale_kernel,
}


def _scale_layout(arch: str, dtype: torch.dtype, kind: int | None, gradient: bool) -> list[launches.Compiled]:
    """Backward's multiplication by an upstream gradient that is not 1."""
    return [launches.Compiled("scale", dict(BLOCK=dense.SCALE_BLOCK), dict(num_warps=dense.SCALE_WARPS))]


# Each gives every layout that its launcher can choose: launchable(arch, dtype, kind, gradient). A new kernel joins here
# and above.
_REGISTRY = (launches.launchable, sparse.launchable, _scale_layout)
_LOGITS = ("student", "teacher", "grad")
_OTHERS = {"labels": "*i64", "choices": "*i32", "hits": "*u8", "counters": "*i32", "slot_ids": "*i32"}
_INTEGERS = (
    "num_rows",
    "vocab",
    "lag",
    "num_slots",
    "width",
    "student_stride",
    "teacher_stride",
    "grad_stride",
    "stride",
)


class Case(NamedTuple):
    """One compilation."""

    kernel: str
    arch: str
    dtype: torch.dtype
    kind: int
    temperature: int  # 0: known at run time
    terms: str
    constants: dict
    options: dict


class Proof(NamedTuple):
    """Counts of one compilation. Loops are those over whole tiles: what a wide vocabulary spends its time in."""

    case: Case
    code: Code
    statistics: list[Loop]  # read and do not write; the second, if any, is the divergence's own sweep
    gradient: list[Loop]  # read and write; for the cooperative launch the whole of a part, with what is rare in it
    issued_bytes: float  # a logit, over all sweeps
    exps: float  # a logit, likewise
    mufu: float  # a logit, likewise
    instructions: float  # a logit, likewise
    bookkeeping: int  # instructions a thread outside those loops: once a row, or a part


def cases(
    arches=ARCHES, dtypes=tuple(_POINTERS), temperatures=(1, 2, 3, 4, 0), terms=tuple(TERMS), kernels=tuple(KERNELS)
) -> Iterator[Case]:
    """List all that can be launched, each once, but for sets of terms between those of TERMS."""
    seen = set()
    for arch, name, dtype in itertools.product(arches, terms, dtypes):
        distilled = TERMS[name]["HAS_KD"]
        for temperature, kind in (
            itertools.product(temperatures, range(len(names_by_kind()))) if distilled else [(1, None)]
        ):
            for found in (
                found for launchable in _REGISTRY for found in launchable(arch, dtype, kind, TERMS[name]["HAS_GRAD"])
            ):
                constants = found.constants | TERMS[name] | dict(T=temperature)
                used = {key: value for key, value in constants.items() if key in KERNELS[found.kernel].arg_names}
                what = (found.kernel, arch, dtype, *sorted(used.items()))
                if found.kernel in kernels and what not in seen:
                    seen.add(what)
                    yield Case(found.kernel, arch, dtype, kind or 0, temperature, name, used, found.options)


def choices(case: Case) -> tuple:
    """List the values that tell a case from the others, one a column."""
    of_kernel = (case.kernel, case.constants.get("SAMPLED"), case.constants.get("SLOTS"))
    return of_kernel, case.arch, case.dtype, case.kind, case.temperature, case.terms, case.options["num_warps"]


def target_of(arch: str) -> GPUTarget:
    """Return triton's name for an architecture (sm_90, gfx942)."""
    return GPUTarget("cuda", int(arch[3:]), 32) if arch.startswith("sm_") else GPUTarget("hip", arch, 64)


def compile_case(case: Case):
    """Compile as the JIT would."""
    function = KERNELS[case.kernel]
    signature, aligned = {}, []
    for index, name in enumerate(function.arg_names):
        if name in case.constants:
            signature[name] = "constexpr"
        elif name in _LOGITS:
            signature[name] = _POINTERS[case.dtype]
        else:
            signature[name] = "i32" if name in _INTEGERS else _OTHERS.get(name, "*fp32")
        if not function.params[index].do_not_specialize and not function.params[index].is_constexpr:
            aligned.append(index)
    source = ASTSource(
        function,
        signature,
        constexprs={(function.arg_names.index(name),): value for name, value in case.constants.items()},
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    return triton.compile(source, target=target_of(case.arch), options=case.options)


def prove(wanted: Iterable[Case], at_once: int = 32) -> Iterator[Proof]:
    """Prove each case, in order; `at_once` of them are disassembled together."""
    for arch, group in itertools.groupby(wanted, key=lambda case: case.arch):
        while some := list(itertools.islice(group, at_once)):
            compiled = [compile_case(case) for case in some]
            if arch.startswith("sm_"):
                codes = read_cubins([one.asm["cubin"] for one in compiled], arch, TOOLS)
            else:
                codes = [read_amdgcn(one.asm["amdgcn"]) for one in compiled]
            for case, one, code in zip(some, compiled, codes):
                yield _count(case, code._replace(shared=one.metadata.shared))


def _count(case: Case, code: Code) -> Proof:
    """Logits a thread and trip from the bytes it reads: that holds also where the compiler unrolled the loop."""
    main = widest_loops(code, 16)
    statistics = [loop for loop in main if not loop.writes[16]]
    gradient = [loop for loop in main if loop.writes[16]]
    counted = [(loop, 1 + case.constants.get("HAS_TEACHER", False)) for loop in statistics]
    if names_by_kind()[case.kind] == "reverse_kl":
        counted = counted[:1]  # the second sweep is for rows with a floor in them
    needs = "HAS_TEACHER" if case.kernel == "cooperative" else "HAS_KD"  # the teacher in the loop that writes
    reads_teacher = case.kernel != "sparse" and case.constants.get(needs, False)
    counted += [(loop, 1 + reads_teacher) for loop in _widest(gradient)]
    sums = dict(issued_bytes=0.0, exps=0.0, mufu=0.0, instructions=0.0)
    for loop, operands in counted:
        logits = loop.reads[16] * 16 / case.dtype.itemsize / operands
        if case.kernel == "cooperative":  # one trip is one tile, with narrow accesses to other things in it
            logits = case.constants["BLOCK"] / (32 * case.options["num_warps"])
        sums["issued_bytes"] += (loop.reads[16] + loop.writes[16]) * 16 / logits
        sums["exps"] += loop.exps / logits
        sums["mufu"] += loop.mufu / logits
        sums["instructions"] += loop.num_instructions / logits
    inside = sum(loop.num_instructions for loop in main)
    bookkeeping = 0 if case.kernel == "cooperative" else code.num_instructions - inside
    return Proof(case, code, statistics, gradient, **sums, bookkeeping=bookkeeping)


def _widest(gradient: list[Loop]) -> list[Loop]:
    """Return the loop over whole wide tiles, if any: others write what is less than one, and rows far from zero."""
    return sorted(gradient, key=lambda loop: (-loop.asks, -loop.reads[16]))[:1]


def as_dict(proof: Proof) -> dict:
    """List what the table and the tests read. Narrow: loop accesses that are not 16 bytes (4 is a slot's id)."""
    case, code = proof.case, proof.code
    loops = proof.statistics + proof.gradient if case.kernel != "cooperative" else []
    narrow = sum(count for loop in loops for width, count in (loop.reads + loop.writes).items() if width not in (16, 4))
    bodies = [
        f"{loop.reads[16]}r {loop.asks}a {loop.writes[16]}w {loop.exps}e {loop.mufu}m"
        for loop in proof.statistics + proof.gradient
    ]
    return dict(
        arch=case.arch,
        kernel=case.kernel + " sampled" * case.constants.get("SAMPLED", False),
        divergence=names_by_kind()[case.kind],
        block=case.constants["BLOCK"],
        warps=case.options["num_warps"],
        registers=code.registers,
        stack=code.stack,
        spills=code.spills,
        shared=code.shared,
        loops=" + ".join(bodies),
        bytes=round(proof.issued_bytes, 2),
        exps=round(proof.exps, 2),
        mufu=round(proof.mufu, 2),
        instructions=round(proof.instructions, 1),
        bookkeeping=proof.bookkeeping,
        dtype=str(case.dtype).split(".")[1],
        temperature=case.temperature or "run-time",
        terms=case.terms,
        slots=case.constants.get("SLOTS"),
        statistics_loops=len(proof.statistics),
        gradient_loops=len(proof.gradient),
        reads_ahead=all(loop.asks for loop in proof.statistics + _widest(proof.gradient)),
        narrow_accesses=narrow,
        waits=sum(loop.barriers + loop.shuffles for loop in loops),
    )


COLUMNS = (
    "arch",
    "kernel",
    "divergence",
    "block",
    "warps",
    "registers",
    "stack",
    "spills",
    "shared",
    "loops",
    "bytes",
    "exps",
    "mufu",
    "instructions",
    "bookkeeping",
)


def table_line(row: dict) -> str:
    """Write one line of the table."""
    return "| " + " | ".join(str(row[column]) for column in COLUMNS) + " |"


def table(rows: list[dict]) -> str:
    """Write Markdown: what all compilations have in common, then one line for each."""
    common = ", ".join(f"{name}: " + " and ".join(sorted({str(row[name]) for row in rows})) for name in _COMMON)
    narrow = sum(row["narrow_accesses"] for row in rows)
    head = (
        f"triton {triton.__version__}; {common}. {len(rows)} compilations, accesses narrower than 16 bytes in a "
        f"sweep: {narrow}."
    )
    return "\n".join([head, "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|", *map(table_line, rows)])


_COMMON = ("dtype", "temperature", "terms")
MARKERS = (
    "<!-- static proof: written by python -m tools.kernel_proof.static_proof --write -->",
    "<!-- end of static proof -->",
)


def write_between_markers(path: Path, text: str) -> None:
    """Replace the text between the MARKERS of a file."""
    before, rest = path.read_text().split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    path.write_text(f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{after}")


def _chosen_cases(chosen: argparse.Namespace) -> list[Case]:
    if chosen.all:
        found = list(cases(chosen.arch, kernels=chosen.kernel))
    else:
        dtypes = tuple(getattr(torch, name) for name in chosen.dtype)
        found = list(cases(chosen.arch, dtypes, chosen.temperature, chosen.terms, chosen.kernel))
        found = [case for case in found if case.constants.get("SLOTS", chosen.slots[0]) in chosen.slots]
    if chosen.quick:
        found = list({(case.kernel, *choices(case)[1:-1]): case for case in reversed(found)}.values())[::-1]
    return [found[place] for place in covering(list(map(choices, found)), chosen.cover)] if chosen.cover else found


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compile the kernels without a GPU and read their machine code.")
    parser.add_argument("--arch", nargs="+", default=list(ARCHES), choices=ARCHES)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], choices=[str(d).split(".")[1] for d in _POINTERS])
    parser.add_argument("--temperature", nargs="+", type=int, default=[2], help="0: known at run time")
    parser.add_argument("--terms", nargs="+", default=["all"], choices=list(TERMS))
    parser.add_argument(
        "--slots",
        nargs="+",
        type=int,
        default=[sparse.SLOT_BLOCKS[0]],
        choices=sparse.SLOT_BLOCKS,
        help="of the sparse kernel",
    )
    parser.add_argument("--kernel", nargs="+", default=list(KERNELS), choices=list(KERNELS))
    parser.add_argument("--all", action="store_true", help="every dtype, temperature, set of terms and number of slots")
    parser.add_argument("--cover", type=int, metavar="N", help="only so many that every N choices are in one together")
    parser.add_argument("--quick", action="store_true", help="one layout of each kernel and divergence")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", nargs="?", const=TABLE, help="put the table between FILE's markers"
    )
    chosen = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("unset TRITON_INTERPRET: the interpreter compiles nothing")
    rows = []
    for proof in prove(_chosen_cases(chosen)):
        rows.append(as_dict(proof))
        if chosen.json:
            print(json.dumps(rows[-1]), flush=True)
    if chosen.write:
        write_between_markers(chosen.write, table(rows))
    elif not chosen.json:
        print(table(rows))


if __name__ == "__main__":
    main()
