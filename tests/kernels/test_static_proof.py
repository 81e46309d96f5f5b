"""The machine code of what can be launched: no spills, no stack, 16-byte accesses, and the bytes and exps that are stated.

Compiled in another process, because here triton interprets. The default run takes one layout of each kernel; every layout
that a launcher can choose, on every architecture, is `pytest -m slow`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").exists():
    pytest.skip("this triton comes without cuobjdump", allow_module_level=True)

from kernels.machine_code import read_amdgcn, read_sass, widest_loops  # noqa: E402

# Bytes issued a logit in bf16 (fp32: twice), and exps a logit at a constant temperature and at one known at run time,
# statistics and gradient with every term on. One exponential a group of 16 bytes is each operand's rescaling.
BYTES = {"forward_kl": 10, "reverse_kl": 10, "jsd": 14}
EXPS = {"forward_kl": (4, 7), "reverse_kl": (3, 6), "jsd": (6, 9)}
SPARSE_BYTES, SPARSE_EXPS = 6, (2, 4)


def proofs(*arguments):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "kernels.static_proof", "--json", *arguments]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(row):
    size, run_time = (2 if row["dtype"] == "float32" else 1), row["temperature"] == "run-time"
    assert (row["spills"], row["stack"]) == (0, 0), row
    assert row["narrow_accesses"] == 0, row
    groups = 0.25 * size if not run_time else 0.5 * size
    if row["kernel"] == "cooperative":
        assert row["bytes"] == 6 * size and row["gradient_loops"] == 1, row
        # Counted over a whole part, with its exchange and what is rare; there are no groups to rescale.
        assert row["exps"] <= EXPS["forward_kl"][run_time] + 1.2 * size, row
        return
    sparse = row["kernel"] == "sparse"
    exps = SPARSE_EXPS if sparse else EXPS[row["divergence"]]
    assert row["bytes"] == (SPARSE_BYTES if sparse else BYTES[row["divergence"]]) * size, row
    assert row["gradient_loops"] == 1 and row["statistics_loops"] == 1 + (not sparse and row["divergence"] != "forward_kl")
    if row["terms"] == "all":
        assert row["exps"] <= exps[run_time] + groups, row
    if not sparse:
        assert row["waits"] == 0, row  # no shuffle and no barrier in any sweep


def test_representative_layouts():
    rows = proofs("--quick", "--arch", "sm_90", "--temperature", "2", "--kernel", "row", "streamed", "cooperative", "sparse")
    assert {row["kernel"] for row in rows} == {"row", "streamed", "cooperative", "sparse"}
    for row in rows:
        check(row)


def test_other_architectures():
    rows = [
        row for arch, temperature, dtype in (("gfx942", "0", "float16"), ("sm_100", "2", "float32"), ("sm_80", "1", "bfloat16"))
        for row in proofs("--quick", "--arch", arch, "--temperature", temperature, "--dtype", dtype, "--kernel", "row")
    ]  # fmt: skip
    for row in rows:
        check(row)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_layout(arch):
    dtypes, temperatures, terms = ("bfloat16", "float16", "float32"), ("1", "2", "3", "4", "0"), ("all", "kd", "ce")
    for row in proofs("--arch", arch, "--dtype", *dtypes, "--temperature", *temperatures, "--terms", *terms):
        check(row)


USAGE = " Function x:\n  REG:40 STACK:8 SHARED:0"
SASS = """
        /*0000*/                   LDL R1, [R2] ;
        /*0010*/                   LDG.E.EL.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @P0  LDG.E.U16 R8, desc[UR4][R2.64] ;
        /*0030*/                   MUFU.EX2 R9, R8 ;
        /*0040*/                   STG.E.EF.128 desc[UR4][R2.64], R4 ;
        /*0050*/              @P1  BRA 0x10 ;
        /*0060*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0070*/              @P2  BRA 0x0 ;
        /*0080*/                   BRA 0x80 ;
"""
AMDGCN = """
kernel:
\ts_mov_b32 s0, 0
.LBB0_1:
\tglobal_load_dwordx4 v[0:3], v4, s[0:1]
\tv_exp_f32_e32 v5, v0
\tglobal_store_dwordx2 v4, v[0:1], s[2:3]
\ts_cbranch_scc1 .LBB0_1
\ts_endpgm
    .private_segment_fixed_size: 16
    .sgpr_spill_count: 1
    .vgpr_count:     24
    .vgpr_spill_count: 2
"""


def test_reading_sass():
    code = read_sass(USAGE, SASS)
    assert (code.registers, code.stack, code.spills, code.num_instructions) == (40, 8, 1, 9)
    (inner,) = widest_loops(code, 16)
    assert dict(inner.reads) == {16: 1, 2: 1} and dict(inner.writes) == {16: 1}
    assert (inner.exps, inner.barriers, inner.num_instructions) == (1, 0, 5)
    assert {loop.barriers for loop in code.loops} == {0, 1}


def test_reading_amdgcn():
    code = read_amdgcn(AMDGCN)
    assert (code.registers, code.stack, code.spills) == (24, 16, 3)
    (loop,) = code.loops
    assert dict(loop.reads) == {16: 1} and dict(loop.writes) == {8: 1} and loop.exps == 1
