"""The machine code of what can be launched: no spills, no stack, 16-byte accesses, and the bytes and exps that are
stated.

Compiled in another process, because here triton interprets. The default run takes one layout of each kernel; every
layout that a launcher can choose, on every architecture, is `pytest -m slow`.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if not all(
    (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool).exists() for tool in ("cuobjdump", "nvdisasm")
):
    pytest.skip("this triton comes without cuobjdump and nvdisasm", allow_module_level=True)

from tools.kernel_proof.machine_code import instructions_of, read_amdgcn, read_sass, widest_loops  # noqa: E402

ROOT = Path(__file__).parents[2]
# Exps a logit at a constant temperature and at one known at run time, statistics and gradient with every term on. One
# exponential a group of 16 bytes is each operand's rescaling.
EXPS = {"forward_kl": (4, 7), "reverse_kl": (3, 6), "jsd": (6, 9)}
SPARSE_EXPS = (2, 4)


def proofs(*arguments):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tools.kernel_proof.static_proof", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def operands(row):
    """Logits (of student, teacher or gradient) that must be read or written for each one of the row's, over all
    sweeps.
    """
    if row["kernel"] == "scale":
        return 2
    sparse, terms = row["kernel"].startswith("sparse"), row["terms"]
    kd, gradient = terms in ("all", "kd", "eval"), terms != "eval"
    read = 1 + (terms != "ce" and not sparse)
    if row["kernel"] == "cooperative":
        return read + gradient
    sweeps = 2 if kd and not sparse and row["divergence"] == "jsd" else 1
    return sweeps * read + gradient * (2 + (kd and not sparse))


# Compilations in which ptxas finds two or three registers too few, outside the sweeps; kernels/README.md names them.
SPILLING = {
    ("sm_100", "row", "reverse_kl", "float16", "run-time", "all"),
    ("sm_100", "streamed", "forward_kl", "bfloat16", "run-time", "all"),
    ("sm_100", "streamed", "forward_kl", "bfloat16", "run-time", "kd"),
}


def check(row):
    size, run_time = (4 if row["dtype"] == "float32" else 2), row["temperature"] == "run-time"
    known = tuple(row[key] for key in ("arch", "kernel", "divergence", "dtype", "temperature", "terms")) in SPILLING
    assert row["narrow_accesses"] == 0 and row["spills"] <= 3 * known and row["stack"] <= 8 * known, row
    assert row["bytes"] == operands(row) * size, row
    sparse, gradient = row["kernel"].startswith("sparse"), row["terms"] != "eval"
    assert (row["gradient_loops"] > 0) == gradient, row
    groups = (0.25 if run_time else 0.125) * size  # a group's own rescaling, of both operands
    if row["kernel"] == "cooperative":
        # Counted over a whole part, with its exchange and what is rare; there are no groups to rescale.
        assert row["exps"] <= EXPS["forward_kl"][run_time] + 0.6 * size, row
    elif row["kernel"] != "scale":
        second = not sparse and row["terms"] in ("all", "kd", "eval") and row["divergence"] != "forward_kl"
        assert row["statistics_loops"] == 1 + second, row
        assert row["exps"] <= (SPARSE_EXPS if sparse else EXPS[row["divergence"]])[run_time] + groups, row
        assert sparse or row["waits"] == 0, row  # no shuffle and no barrier in any sweep
        assert row["reads_ahead"] == row["arch"].startswith("sm_"), row


@pytest.fixture(scope="module")
def on_hopper():
    return proofs("--quick", "--arch", "sm_90")


def test_representative_layouts(on_hopper):
    assert {row["kernel"] for row in on_hopper} == {"row", "streamed", "cooperative", "sparse", "scale"}
    for row in on_hopper:
        check(row)


def test_the_table_has_what_the_code_gives(on_hopper):
    """Written by `python -m tools.kernel_proof.static_proof --write`; another triton compiles other code."""
    from tools.kernel_proof.static_proof import TABLE, table_line

    text = TABLE.read_text()
    if f"triton {triton.__version__};" not in text:
        pytest.skip(f"the table is of another triton than {triton.__version__}")
    for row in on_hopper:
        assert table_line(row) in text


TOGETHER = """
from pathlib import Path
import subprocess
import torch
from tools.kernel_proof import static_proof
from tools.kernel_proof.machine_code import read_sass

cases = list(static_proof.cases(("sm_90",), (torch.bfloat16,), (2,), ("ce",), ("row", "scale")))
assert len(cases) == 4
for case, proof in zip(cases, static_proof.prove(cases, at_once=3)):
    Path("kernel.cubin").write_bytes(static_proof.compile_case(case).asm["cubin"])
    command = [static_proof.TOOLS / "cuobjdump", "-res-usage", "-sass", "kernel.cubin"]
    alone = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    alone = read_sass(alone, alone)
    assert proof.code == alone._replace(shared=proof.code.shared), case
"""


def test_kernels_disassembled_together_read_as_each_alone(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", TOGETHER], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SPECIALIZED = """
from tools.kernel_proof.static_proof import KERNELS
print(sorted({p.name for k in KERNELS.values() for p in k.params if not p.is_constexpr and not p.do_not_specialize}))
"""


def test_counts_and_row_vectors_choose_no_compilation():
    """Else a step with one row, or a chunk that starts where 16 bytes do not, waits for the compiler; nor would this
    proof be of what is launched."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", SPECIALIZED], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.split() == [
        "['counters',",
        "'grad',",
        "'grad_stride',",
        "'partials',",
        "'stride',",
        "'student',",
        "'student_stride',",
        "'teacher',",
        "'teacher_stride',",
        "'width']",
    ], done.stderr


def test_only_what_lies_between_the_markers_is_written(tmp_path):
    from tools.kernel_proof.static_proof import MARKERS, write_between_markers

    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    for text in ("first", "second"):
        write_between_markers(page, text)
    assert page.read_text() == f"before\n{MARKERS[0]}\n\nsecond\n\n{MARKERS[1]}\nafter\n"


def test_other_architectures_and_terms():
    rows = [
        row
        for arguments in (
            ("gfx942", "0", "float16", "all"),
            ("sm_100", "2", "float32", "hard"),
            ("sm_80", "1", "bfloat16", "eval"),
            ("sm_90", "2", "float32", "all"),
        )
        for row in proofs(
            "--quick",
            "--kernel",
            "row",
            *itertools.chain(*zip(("--arch", "--temperature", "--dtype", "--terms"), arguments)),
        )
    ]
    assert len(rows) == 3 + 1 + 3 + 3
    for row in rows:
        check(row)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_layout(arch):
    for row in proofs("--all", "--arch", arch):
        check(row)


@pytest.mark.slow
def test_every_three_choices_together():
    """Of kernel, architecture, dtype, divergence, temperature, terms, warps and slots: every three of them that can be
    launched.
    """
    for row in proofs("--all", "--cover", "3"):
        check(row)


USAGE = " Function x:\n  REG:40 STACK:8 SHARED:0"
SASS = """
        /*0000*/                   LDL R1, [R2] ;
        /*0010*/                   LDG.E.EL.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @P0  LDG.E.U16 R8, desc[UR4][R2.64] ;
        /*0030*/                   MUFU.EX2 R9, R8 ;
        /*0040*/                   STG.E.EF.128 desc[UR4][R2.64], R4 ;
        /*0050*/                   MUFU.LG2 R9, R9 ;
        /*0060*/              @P1  BRA 0x10 ;
        /*0070*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0080*/              @P2  BRA 0x0 ;
        /*0090*/                   BRA 0x90 ;
"""
AMDGCN = """
kernel:
\ts_mov_b32 s0, 0
.LBB0_1:
\tglobal_load_dwordx4 v[0:3], v4, s[0:1]
\tv_exp_f32_e32 v5, v0
\tv_log_f32_e32 v5, v5
\tglobal_store_dwordx2 v4, v[0:1], s[2:3]
\ts_cbranch_scc1 .LBB0_1
\ts_endpgm
    .private_segment_fixed_size: 16
    .sgpr_spill_count: 1
    .vgpr_count:     24
    .vgpr_spill_count: 2
"""


# The outer loop computes; the inner one reads as wide, and is part of a sweep rather than one.
SLOTS = SASS.replace("MUFU.EX2 R9, R8", "MOV R9, R8").replace("BAR.SYNC.DEFER_BLOCKING 0x0", "MUFU.EX2 R9, R8")


def test_a_loop_without_exps_is_no_sweep_where_another_has_them():
    (sweep,) = widest_loops(read_sass(USAGE, SLOTS), 16)
    assert (sweep.exps, sweep.num_instructions) == (1, 9)


# The inner loop's end in a kernel of many instructions: a call that does not return leads out, a jump back.
CALLED = SASS.replace(
    "/*0060*/              @P1  BRA 0x10 ;",
    "/*0060*/              @!P1 CALL.REL.NOINC 0x70 ;\n        /*0068*/                   BRA 0x10 ;",
)


def test_a_loop_that_a_call_leaves_is_inside_the_loop_around_it():
    code = read_sass(USAGE, CALLED)
    _, inner, outer = sorted(
        code.loops, key=lambda loop: loop.num_instructions
    )  # the first is the end's jump to itself
    assert inner.lines < outer.lines and (inner.num_instructions, outer.num_instructions) == (7, 10)
    assert widest_loops(code, 16) == [inner]


def test_reading_sass():
    code = read_sass(USAGE, SASS)
    assert (code.registers, code.stack, code.spills, code.num_instructions) == (40, 8, 1, 10)
    (inner,) = widest_loops(code, 16)
    assert dict(inner.reads) == {16: 1, 2: 1} and dict(inner.writes) == {16: 1}
    assert (inner.exps, inner.mufu, inner.barriers, inner.num_instructions) == (1, 2, 0, 6)
    assert {loop.barriers for loop in code.loops} == {0, 1}


MOVED = """
.LBB0_0:
\ts_branch .LBB0_2
.LBB0_1:
\tv_exp_f32_e32 v5, v0
\ts_cbranch_scc1 .LBB0_7
.LBB0_2:
\tglobal_load_dwordx4 v[0:3], v4, s[0:1]
\ts_cbranch_execnz .LBB0_5
.LBB0_3:
\ts_cbranch_execnz .LBB0_6
\ts_branch .LBB0_1
.LBB0_5:
\tglobal_load_dwordx4 v[4:7], v4, s[2:3]
\ts_branch .LBB0_3
.LBB0_6:
\tglobal_store_dwordx4 v4, v[0:3], s[2:3]
\ts_branch .LBB0_1
.LBB0_7:
\ts_endpgm
"""


def test_what_a_compiler_moved_out_of_a_loop_is_of_the_loop():
    """Its end, LBB0_1, stands before its beginning, LBB0_2, and LBB0_5 and LBB0_6 behind it; that LBB0_5 goes back to
    LBB0_3 makes no loop of those two."""
    usage = AMDGCN.split("\ts_endpgm\n")[1]
    (loop,) = read_amdgcn(MOVED + usage).loops
    assert (dict(loop.reads), dict(loop.writes), loop.exps, loop.num_instructions) == ({16: 2}, {16: 1}, 1, 10)


def test_a_file_without_a_kernel_is_refused():
    header, nothing = bytearray(64), bytearray(64)
    header[0x28:0x30] = (64).to_bytes(8, "little")
    header[0x3A:0x40] = (64).to_bytes(2, "little") + (1).to_bytes(2, "little") + bytes(2)
    with pytest.raises(ValueError, match="one kernel is wanted, this one has 0"):
        instructions_of(bytes(header + nothing))


def test_reading_amdgcn():
    code = read_amdgcn(AMDGCN)
    assert (code.registers, code.stack, code.spills) == (24, 16, 3)
    (loop,) = code.loops
    assert dict(loop.reads) == {16: 1} and dict(loop.writes) == {8: 1} and (loop.exps, loop.mufu) == (1, 2)
