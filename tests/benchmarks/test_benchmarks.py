# type: ignore  # pyright checks kd, kernels and launch (pyproject.toml)
"""The benchmarks run end to end without a GPU at tiny sizes, and write what readers of the results count on."""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from argparse import Namespace

import pytest
import torch

from benchmarks import counters, gpu_parts, gpu_suite, loss_kernels, measure, methods, parity, targets
from helpers import kernel_cases, sparse_cases

FACTS = {"schema", "date", "device", "versions", "commit"}
CPU = torch.device("cpu")
WORKS = loss_kernels.workloads(loss_kernels.FAMILIES, (300,), (5,), "float32", 16)


def run(*command):
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    return subprocess.run([sys.executable, *command], cwd=measure.ROOT, env=env, capture_output=True, text=True)


def test_loss_kernels_on_a_cpu(tmp_path):
    """Ratios and peaks of the reference, no time of a kernel, and the reason in words."""
    out = tmp_path / "results.json"
    done = run(
        "benchmarks/loss_kernels.py",
        "--out",
        out,
        "--vocab",
        "20000",
        "--rows",
        "64",
        "--seconds",
        "0.01",
        "--static",
        "--families",
        "sparse",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(out.read_text())
    assert set(results) >= FACTS and results["device"]["type"] == "cpu" and results["copy_gb_s"] is None
    assert [row["method"] for row in results["rows"]] == ["eager", "ours (reference)"]
    for row in results["rows"]:
        assert row["parity"]["passed"] and row["low_ms"] <= row["median_ms"] <= row["high_ms"] and row["repeats"] >= 3
        assert row["peak_bytes"] > 64 * 20000 * 4  # at least a gradient
        assert row["over_eager"] > 0 and not {"useful_gb_s", "percent_of_copy"} & set(row)
    assert "no GPU here" in results["not_measured"][-1] and "not measured: no GPU here" in done.stdout
    assert out.with_suffix(".png").stat().st_size > 1000


def test_shapes_asked_for():
    """Every vocabulary, both row counts and all families, the project's target first."""
    works = loss_kernels.workloads(loss_kernels.FAMILIES, loss_kernels.VOCABS, loss_kernels.ROWS)
    assert (works[0].family, works[0].num_rows, works[0].vocab, works[0].dtype) == ("dense", 8192, 151936, "bfloat16")
    assert {work.vocab for work in works} == {32000, 128256, 151936, 262144} and {work.num_rows for work in works} == {
        1024,
        8192,
    }
    assert len({work.name() for work in works}) == len(works) == 64


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name())
def test_eager_is_the_peer_of_the_kernel_tests(work):
    data = methods.make_data(work, CPU)
    logits = data.leaves[0] if len(data.leaves) == 1 else data.leaves[0] @ data.leaves[1].T
    if work.terms == "ce":
        expected = torch.nn.functional.cross_entropy(logits, data.labels)
    elif work.kept:
        case = sparse_cases.SparseCase(logits, data.teacher, data.labels, data.weights)
        expected = sparse_cases.peer(*case, sparse_cases.options_for(case, **methods.settings(work)))["loss"]
    else:
        teacher = data.teacher if work.family == "dense" else data.teacher.hidden @ data.teacher.head.weight.T
        case = kernel_cases.Case(logits, teacher, data.labels, data.weights)
        expected = kernel_cases.peer(*case, kernel_cases.options_for(case, **methods.settings(work)))["loss"]
    torch.testing.assert_close(methods.eager(data, data.leaves), expected)


@pytest.mark.parametrize("work", [WORKS[0], WORKS[2]], ids=["logits", "head"])
def test_parity_in_chunks_is_parity(work, monkeypatch):
    """Rows taken one at a time give the errors of all rows at once, and a gradient that is off in one row is found."""
    whole = parity.check(methods.ours("reference"), work, CPU, is_ours=True)
    monkeypatch.setattr(parity, "_CHUNK_NUMBERS", 300)
    rows = parity.check(methods.ours("reference"), work, CPU, is_ours=True)
    assert (
        rows.passed
        and rows.errors == pytest.approx(whole.errors, rel=1e-3, abs=1e-9)
        and len(rows.errors) == len(rows.allowed)
    )

    def off_in_the_last_row(data, leaves):
        scaled = torch.ones(len(data.labels), 1)
        scaled[-1] = 1.001
        hooked = leaves[0] + 0
        hooked.register_hook(lambda grad: grad * scaled)
        return methods.eager(data, [hooked, *leaves[1:]])

    wrong = parity.check(off_in_the_last_row, work, CPU, is_ours=True)
    assert not wrong.passed and wrong.errors[0] <= wrong.allowed[0] and 1e-4 < wrong.errors[1] < 1.1e-3


def test_a_wrong_gradient_gets_no_time():
    chosen = Namespace(gate_rows=4, parity_only=False, seconds=0.01)

    def row(name, factor):
        way = lambda data, leaves: methods.eager(data, leaves) * factor  # noqa: E731
        return loss_kernels.measure_row(name, lambda: way, WORKS[0], CPU, None, chosen)

    for name, factor, passes in (
        ("ours", 1.0, True),
        ("ours", 1.001, False),
        ("peer", 1.001, True),
        ("peer", 1.2, False),
        ("peer", float("nan"), False),
    ):
        found = row(name, factor)
        assert found["parity"]["passed"] == passes and ("median_ms" in found) == passes
        assert passes or found["skipped"] == "parity check failed"
    chosen.parity_only = True
    assert "median_ms" not in row("ours", 1.0) and row("ours", 1.0)["parity"]["rows"] == 4
    assert loss_kernels.measure_row("liger", lambda: None, WORKS[0], CPU, None, chosen)["skipped"].startswith(
        "this peer has no"
    )


def test_bytes():
    dense, sparse, jsd = (
        next(work for work in WORKS if (work.family, work.divergence) == what)
        for what in (("dense", "forward_kl"), ("sparse", "forward_kl"), ("dense", "jsd"))
    )
    logits = 5 * 300
    assert [methods.useful_bytes(work._replace(dtype="bfloat16")) / logits for work in (dense, sparse, jsd)] == [
        6,
        4,
        6,
    ]
    issued = [
        (dense, "row", 10),
        (dense, "streamed", 10),
        (dense, "cooperative", 6),
        (sparse, "row", 6),
        (jsd, "row", 14),
        (dense._replace(terms="ce"), "row", 6),
    ]
    for work, form, expected in issued:
        assert methods.issued_bytes(work._replace(dtype="bfloat16"), form) / logits == expected
    assert methods.useful_bytes(WORKS[2]) is None


def test_median_and_spread(monkeypatch):
    times = iter([5.0, 1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(measure, "_host_time", lambda call: next(times))
    assert measure.time_it(lambda: None, CPU, most=5) == measure.Timing(3.0, 2.0, 5.0, 5)


def test_suite_survives_what_a_part_does(tmp_path):
    def ended(*codes, seconds=30.0, needs=(), tools=()):
        commands = [[sys.executable, "-c", code] for code in codes]
        return gpu_suite.run_part(
            gpu_suite.Part("part", 1.0, commands, {}, needs, tools), seconds, tmp_path, dict(os.environ)
        )

    assert ended("print(1)")["ended"] == "passed" and ended("print(1)")["last_lines"] == [["1"]]
    assert ended("raise SystemExit(3)", "print(1)")["ended"] == "exit 3"
    assert ended("import os; os.kill(os.getpid(), 11)")["ended"] == "exit -11"
    start = time.monotonic()
    seconds = f"999.{os.getpid()}"  # of this test alone, whoever runs it beside
    child = f"import subprocess, time; subprocess.Popen(['sleep', '{seconds}']); time.sleep(60)"
    assert ended(child, "print(1)", seconds=1.5)["ended"] == "out of time" and time.monotonic() - start < 20
    while f"sleep {seconds}" in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout:
        assert time.monotonic() - start < 20  # a process that is killed may take a moment to be gone
        time.sleep(0.1)
    assert ended("", needs=("torch", "no_such_package"))["ended"] == "not run: needs no_such_package"
    assert ended("", tools=("no_such_program",))["ended"] == "not run: needs no_such_program"
    assert ended("print('{minutes}')", seconds=75.0)["last_lines"] == [["1.00"]]


def test_summary(tmp_path):
    rows = [
        dict(WORKS[0]._asdict(), method=name, median_ms=time)
        for name, time in (("eager", 6.0), ("liger", 3.0), ("ours", 2.0))
    ]
    rows.append(dict(WORKS[1]._asdict(), method="ours", skipped="parity check failed"))
    measure.write_json(tmp_path / "timings.json", {"rows": rows})
    assert gpu_suite.summary(tmp_path)[:3] == [
        "timings: ours sparse 5x300: parity check failed",
        "timings: ours dense kd+ce forward_kl 5x300: 2.000 ms, 1.50 times the speed of liger",
        "target: dense kd+ce 8192x151936: not measured",
    ]


def test_what_was_asked_for_is_met_or_short_with_its_kernels():
    """By the fastest of ours, against the fastest peer of the same loss; a peer of another loss does not count."""
    dense, sparse, linear = (work._replace(num_rows=targets.ROWS, vocab=targets.VOCAB)._asdict() for work in WORKS[:3])
    kernels = [{"name": "sparse_kernel", "launches": 1, "ms": 1.5}]
    rows = [
        dense | {"method": "ours", "median_ms": 3.0, "percent_of_copy": 79.0},
        dense | {"method": "ours (in place)", "median_ms": 2.0, "percent_of_copy": 81.0, "kernels": kernels},
        dense | {"method": "liger", "median_ms": 6.1},
        sparse | {"method": "ours", "median_ms": 2.0, "percent_of_copy": 84.9, "kernels": kernels},
        sparse | {"method": "eager", "median_ms": 20.0},
        sparse | {"method": "torch.compile", "median_ms": 1.0, "temperature": 7.0},
        linear | {"method": "ours", "median_ms": 9.0, "percent_of_bare_gemms": 109.0},
    ]
    found = targets.verdicts(rows)
    assert (
        found[0]
        == "target: dense kd+ce 8192x151936 by ours (in place): met: percent_of_copy 81.0, asked 80; 3.05 times "
        "liger, asked 3"
    )
    assert found[1].startswith(
        "target: sparse kd+ce 8192x151936 by ours: SHORT: percent_of_copy 84.9, asked 85; 10.00 times eager"
    )
    assert found[2] == "    1.500 ms in 1 of sparse_kernel"
    assert "SHORT" in found[3] and found[3].endswith("no peer measured") and found[4].endswith("not measured")
    assert {(work.family, work.terms) for work in WORKS} >= {target[:2] for target in targets.TARGETS}


def test_time_by_kernel():
    a = torch.randn(300, 300)
    found = measure.time_by_kernel(lambda: (a @ a, a + a), CPU)
    assert {"aten::mm", "aten::add"} <= {part["name"] for part in found} and found[0]["ms"] >= found[-1]["ms"] > 0
    assert all(part["launches"] == 1 for part in found if part["name"] == "aten::mm")


ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("httpx2", "hypothesis", "datasets", "liger_kernel"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    """Programs find no package that a bare GPU machine lacks and tools/gpu_kit.py does not bring."""
    folder = tmp_path / "absent"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(ABSENT)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def rehearse(tmp_path, *only):
    out, work = tmp_path / "out", tmp_path / "work"
    minutes = "3" if only else "30"
    options = ("--out", out, "--work", work, "--minutes", minutes, "--rehearse", *(["--only", *only] if only else []))
    done = run("benchmarks/gpu_suite.py", *options)
    assert done.returncode == 0, (done.stdout, done.stderr[-2000:])
    assert {path.name for path in out.iterdir()} == {"suite.json", "results.tar.gz"}
    with tarfile.open(out / "results.tar.gz") as archive:
        names = set(archive.getnames())
    return json.loads((out / "suite.json").read_text()), work, names


def test_rehearsal_of_the_suite(tmp_path, bare_machine):
    """The parts that cost least; the others are the same commands as on a GPU, with other shapes."""
    pytest.importorskip("triton")
    suite, work, names = rehearse(tmp_path, "tune", "counters")
    assert set(suite) >= FACTS and suite["rehearsal"] and [part["ended"] for part in suite["parts"]] == ["passed"] * 2
    layouts = json.loads((work / "tune.json").read_text())["layouts"]
    assert {row["launch"] for row in layouts} == {"row", "streamed", "cooperative"}
    assert all(row["skipped"] == "rehearsal: no time is taken off a GPU" for row in layouts)
    forms = json.loads((work / "counters.json").read_text())["rows"]
    assert [row["form"] for row in forms] == list(counters.FORMS) and all("launched" in row["skipped"] for row in forms)
    assert names == {"tune.json", "tune.log", "counters.json", "counters.log"}


@pytest.mark.slow
def test_rehearsal_of_the_whole_suite(tmp_path, bare_machine):
    pytest.importorskip("triton")
    suite, _, names = rehearse(tmp_path)
    assert [part["part"] for part in suite["parts"]] == [part.name for part in gpu_parts.parts(tmp_path, True)]
    assert {"timings.json", "parity.json", "tests_0.xml", "train.log"} <= names


def test_parts_fit_into_one_command_each(tmp_path):
    found = gpu_parts.parts(tmp_path, rehearse=False)
    assert all(part.minutes <= gpu_parts.MOST_MINUTES for part in found)
    assert [part.name for part in found[:6]] == ["timings", "parity", "tune", "counters", "tests", "train"]


def test_a_wheel_of_another_python_costs_itself_alone(tmp_path):
    """As pip names them; a folder with one of them installs none of the others when it is given all at once."""
    for name, tag in (("good", "py3-none-any"), ("other", "cp27-cp27m-win32")):
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-{tag}.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "")
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{name}-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
            wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    ends = gpu_suite.install_wheels(tmp_path, tmp_path / "packages")
    assert ends["good-1.0-py3-none-any.whl"] == "installed" and (tmp_path / "packages" / "good.py").exists()
    assert "not a supported wheel" in ends["other-1.0-cp27-cp27m-win32.whl"]


NCU = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","7","dense_kernel","dram__bytes_read.sum","Gbyte","1.25"
"0","7","dense_kernel","dram__bytes_write.sum","Mbyte","622.4"
"0","7","dense_kernel","lts__t_sectors_op_read_lookup_hit.sum","sector","50,000"
"0","7","dense_kernel","lts__t_sectors_op_read.sum","sector","100,000"
"0","7","dense_kernel","sm__inst_issued.avg.pct_of_peak_sustained_active","%","61.5"
"0","7","dense_kernel","launch__registers_per_thread","register/thread","128"
"""


def test_counters_of_a_launch():
    work = counters.workload("dense", 2048, 151936, "bfloat16")
    found = counters.a_logit(counters.read_counters(NCU), work)
    assert found == {"dram_bytes_a_logit": 6.02, "l2_read_hits_percent": 50.0, "issue_percent": 61.5, "registers": 128}
    with pytest.raises(ValueError, match="no table: ==ERROR== no permission"):
        counters.read_counters("==ERROR== no permission")
    with pytest.raises(ValueError, match="gave no registers"):
        counters.read_counters(NCU.rsplit('"0"', 1)[0])


def test_a_peer_that_is_missing_and_one_that_is_broken(tmp_path, monkeypatch):
    chosen = Namespace(gate_rows=4, parity_only=True, seconds=0.01)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "liger_kernel" else real(name))
    way = lambda: methods.liger(WORKS[0])  # noqa: E731
    found = loss_kernels.measure_row("liger", way, WORKS[0], CPU, None, chosen)
    assert found["skipped"] == "not installed: liger-kernel"
    monkeypatch.setattr(importlib.util, "find_spec", real)
    (tmp_path / "liger_kernel").mkdir()
    (tmp_path / "liger_kernel" / "__init__.py").write_text("import no_such_module_of_liger")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "liger_kernel", raising=False)
    found = loss_kernels.measure_row("liger", way, WORKS[0], CPU, None, chosen)
    assert "no_such_module_of_liger" in found["skipped"]


def test_what_the_suite_cannot_run(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU here: --rehearse"):
        gpu_suite.main(["--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="'tuna'.*parts are .'timings', 'parity'"):
        gpu_suite.main(["--out", str(tmp_path), "--rehearse", "--only", "tuna"])
