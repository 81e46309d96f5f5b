"""Arrows go one way: launch -> kd -> kernels, and from room to room inside kd. Files are few, short and open.

`kernels` imports torch and triton and nothing else; nobody imports launch.
"""

from __future__ import annotations

import ast
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = {package: sorted((REPOSITORY / package).rglob("*.py")) for package in ("kernels", "kd", "launch")}
OURS = {*SOURCES, "tests", "benchmarks"}

# fmt: off
ROOMS = [
    "errors", "registry", "hashing", "dtypes", "units", "limits", "paths", "atomic_files", "folders", "outputs",
    "config", "toolcalls", "records", "sources", "rendering", "batching", "distributed", "models", "objective",
    "endpoint", "teacher", "rewards", "rollouts", "checkpoints", "training", "evaluation", "generation", "preflight",
    "reports", "run_folder", "run_end", "run",
]
# fmt: on
"""Rooms and single files of kd: each may import those before it."""
MAX_LINES = 400
MAX_FILES = 12  # of a room, its __init__.py aside
MAX_PARAMETERS = 8
MEDIAN_LINES = (80, 220)


def imported(path: Path) -> set[str]:
    """Top packages that a file imports anywhere in it, relative imports as the package they are in."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(path.relative_to(REPOSITORY).parts[0] if node.level else node.module.split(".")[0])
    return found


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for paths in SOURCES.values() for path in paths}


def imported_names(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yield (module, name) of each import of ours anywhere in a file; the name is None where the module itself is."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] in SOURCES)
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] in SOURCES):
            assert not node.level, f"{path}:{node.lineno}: a relative import: write the whole name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, None) if inner in MODULES else (node.module, alias.name)


def imported_modules(path: Path) -> set[str]:
    """Modules of ours that a file imports, in its functions too; a module also runs the packages that it is in."""
    return {module for module, _ in imported_names(path) if module in MODULES}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def defined(path: Path) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Yield each function of a file, and whether it is a method."""
    for node in ast.walk(tree_of(path)):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield child, isinstance(node, ast.ClassDef)


FILES = [
    pytest.param(package, path, id=str(path.relative_to(REPOSITORY)))
    for package, paths in SOURCES.items()
    for path in paths
]
ALL_FILES = [
    path
    for folder in ("kd", "kernels", "launch", "tests", "benchmarks", "tools", "examples")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
]
KD_FILES = [pytest.param(path, id=str(path.relative_to(REPOSITORY / "kd"))) for path in SOURCES["kd"]]


@pytest.mark.parametrize(("package", "path"), FILES)
def test_arrows_go_one_way(package, path):
    allowed = {"kernels": {"kernels"}, "kd": {"kd", "kernels"}, "launch": {"kd", "launch"}}[package]
    assert imported(path) & OURS <= allowed


@pytest.mark.parametrize("path", SOURCES["kernels"], ids=lambda path: path.name)
def test_kernels_know_tensors_only(path):
    assert imported(path) - set(sys.stdlib_module_names) <= {"torch", "triton", "kernels"}


def test_every_package_has_sources():
    assert all(len(paths) > 1 for paths in SOURCES.values())


def test_every_room_has_its_place_in_the_order():
    rooms = {path.stem for path in (REPOSITORY / "kd").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__init__", "__pycache__"} == set(ROOMS)


@pytest.mark.parametrize("path", KD_FILES)
def test_a_room_imports_only_those_before_it(path):
    room = room_of(module_of(path))
    if room:
        before = ROOMS[: ROOMS.index(room) + 1]
        assert not {
            module for module in imported_modules(path) if module.startswith("kd.") and room_of(module) not in before
        }


@pytest.mark.parametrize("package", ["kd", "kernels", "launch"])
def test_no_import_goes_in_a_circle(package):
    arrows = {module_of(path): imported_modules(path) - {module_of(path)} for path in SOURCES[package]}
    done: set[str] = set()

    def follow(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for target in sorted(arrows.get(module, ())):
                follow(target, (*way, module))
            done.add(module)

    for module in sorted(arrows):
        follow(module, ())


@pytest.mark.parametrize(("package", "path"), FILES)
def test_no_private_name_is_imported(package, path):
    assert not [
        f"{module}:{name}"
        for module, name in imported_names(path)
        if any(part.startswith("_") and not part.startswith("__") for part in (*module.split("."), name or ""))
    ]


@pytest.mark.parametrize("path", KD_FILES)
def test_no_function_has_too_many_parameters(path):
    for function, is_method in defined(path):
        arguments = function.args
        names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        count = len(names) - (is_method and names[:1] in (["self"], ["cls"]))
        assert count <= MAX_PARAMETERS, f"{function.name}: {count} parameters"


def test_no_file_is_long():
    lengths = {
        str(path.relative_to(REPOSITORY)): len(path.read_text(encoding="utf-8").splitlines()) for path in ALL_FILES
    }
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_LINES}


def test_a_file_is_a_few_screens_long():
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for paths in SOURCES.values() for path in paths]
    assert MEDIAN_LINES[0] <= statistics.median(count for count in lines if count > 3) <= MEDIAN_LINES[1]


def test_no_room_is_crowded():
    folders = {path.parent for paths in SOURCES.values() for path in paths}
    crowded = {folder: len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) for folder in folders}
    assert not {folder: count for folder, count in crowded.items() if count > MAX_FILES}


@pytest.mark.parametrize(
    "path", [one for one in KD_FILES if one.values[0].name == "__init__.py" and one.values[0].parent.name != "kd"]
)
def test_a_room_says_its_purpose_in_one_line(path):
    text = path.read_text(encoding="utf-8").strip()
    purpose = ast.get_docstring(tree_of(path))
    assert purpose and text == f'"""{purpose}"""' and "\n" not in purpose
    assert not purpose.startswith(("TODO", "What", "Where", "Which", "Whether", "How"))


def test_no_test_folder_shadows_a_package():
    """tests/kernels with an __init__.py would be imported in place of `kernels`."""
    assert not [path for package in SOURCES for path in REPOSITORY.glob(f"tests/**/{package}/__init__.py")]


@pytest.mark.parametrize(
    "path", [path for path in SOURCES["launch"] if "def main(" in path.read_text()], ids=lambda path: path.name
)
def test_entry_points_run_from_a_checkout_that_is_not_installed(path, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr[-2000:]
