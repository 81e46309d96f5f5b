"""Evaluate tool use of saved models on held-out records.

    spanwise evaluate --model teacher=runs/demo/teacher --model student=runs/demo/student \\
        --data unseen_values=held_out/values.jsonl --data unseen_tools=held_out/tools.jsonl --out runs/demo

writes OUT/evaluation.json and OUT/cases.jsonl. Models are whole `save_pretrained` folders with their tokenizers.

    spanwise evaluate --compare one=runs/a/evaluation.json two=runs/b/evaluation.json --out runs/both

pairs models of earlier evaluations record by record, writes OUT/comparison.html and OUT/comparison.md, and prints the
latter. Exit code: 0 all is well, 1 not, 2 wrong use.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout that is not installed

import torch
from tqdm import tqdm

from kd.evaluation.answerers.local_model import EvaluationError, LocalModel
from kd.evaluation.comparison import read_evaluations
from kd.evaluation.evaluate import Evaluation, evaluate_model
from kd.evaluation.files import (
    CASES,
    EVALUATION,
    format_comparison,
    format_table,
    list_outputs,
    write_cases,
    write_comparison_table,
    write_evaluation,
)
from kd.models.load import load_whole_model
from kd.models.tokenizer import read_rendering_tokenizer
from kd.outputs import Output, check_outputs
from kd.paths import identify, path_option
from kd.records.files import read_records
from kd.reports.comparison_page import write_comparison
from kd.reports.html import is_page
from launch.shared import add_verbose, make_parser, run_guarded


def parse(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, prog)
    parser.add_argument(
        "--model", action="append", default=[], type=_split_name, metavar="[NAME=]FOLDER", help="repeatable"
    )
    parser.add_argument(
        "--data", action="append", default=[], type=_split_name, metavar="[SPLIT=]FILE", help="records, repeatable"
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        type=_split_folder,
        metavar="[NAME=]EVALUATION.JSON",
        help="evaluations to compare, in place of --model and --data; NAME is its folder's by default",
    )
    parser.add_argument("--out", type=path_option, help="folder of what is written; with --compare this one by default")
    parser.add_argument("--batch-size", type=int, default=64, help="prompts generated together; 64 by default")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer in tokens; 256 by default")
    add_verbose(parser)
    args = parser.parse_args(argv)
    if args.compare and (args.model or args.data):
        parser.error("--compare: it takes evaluations that were written before, and no --model or --data")
    if not args.compare:
        absent = [f"--{name}" for name in ("model", "data", "out") if not getattr(args, name)]
        if absent:
            parser.error(f"the following arguments are required: {', '.join(absent)}")
    for option, pairs in (("--model", args.model), ("--data", args.data), ("--compare", args.compare)):
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            parser.error(f"{option}: two are called {max(names, key=names.count)!r}; name them apart, as in NAME=PATH")
        missing = [str(path) for _, path in pairs if not path.exists()]
        if missing:
            parser.error(f"{option}: no such file or folder: {', '.join(missing)}")
    places = [identify(path) for _, path in args.data]
    if len(set(places)) < len(places):
        parser.error(f"--data: {args.data[places.index(max(places, key=places.count))][1]} is given twice")
    for name in ("batch_size", "max_new_tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: 1 or more")
    return args


def _split_name(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    return (name, path_option(path)) if equals else (Path(text).stem, path_option(text))


def _split_folder(text: str) -> tuple[str, Path]:
    name, path = _split_name(text)
    return (name if "=" in text else path.absolute().parent.name), path


def compare(files: list[tuple[str, Path]], out: Path) -> int:
    """Compare evaluations, write page and table to `out`, and print the table."""
    evaluation = read_evaluations(files)
    table = format_comparison(evaluation)
    page, markdown = out / "comparison.html", out / "comparison.md"
    outputs = [Output("--out", page, "a comparison", is_page), Output("--out", markdown, "a comparison", _is_table)]
    check_outputs(outputs, [("--compare", path) for _, path in files])
    write_comparison(page, evaluation, files)
    write_comparison_table(markdown, table)
    print(table)
    return 0


def _is_table(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3) == b"## " and b"\n\n| model |" in file.read(1 << 12)


def evaluate_folder(
    folder: Path, data: list[tuple[str, Path]], batch_size: int, max_new_tokens: int
) -> dict[str, Evaluation]:
    """Evaluate one saved model on every split."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = read_rendering_tokenizer(folder, key="--model")
    answerer = LocalModel(
        load_whole_model(folder).to(device), tokenizer, batch_size=batch_size, max_new_tokens=max_new_tokens
    )
    done = {}
    for split, path in data:
        with tqdm(desc=f"{folder.name} on {split}", unit="turn", disable=None, leave=False) as bar:

            def show(num_done: int, num_cases: int) -> None:
                bar.total = num_cases
                bar.update(num_done - bar.n)

            try:
                done[split] = evaluate_model(answerer, read_records(path), tokenizer, progress=show)
            except EvaluationError as error:
                raise EvaluationError(f"{folder} on {path}: {error}") from error
    return done


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    args = parse(argv, prog)
    return run_guarded(
        lambda: compare(args.compare, args.out or Path()) if args.compare else evaluate(args),
        verbose=args.verbose,
        interrupted="nothing was written",
    )


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate every model on every split, write the files, and print the table."""
    check_outputs(list_outputs("--out", args.out), [("--data", path) for _, path in args.data])
    done = {
        name: evaluate_folder(folder, args.data, args.batch_size, args.max_new_tokens) for name, folder in args.model
    }
    metrics = {name: {split: one.metrics for split, one in splits.items()} for name, splits in done.items()}
    write_evaluation(args.out / EVALUATION, metrics)
    write_cases(
        args.out / CASES, {name: {split: one.cases for split, one in splits.items()} for name, splits in done.items()}
    )
    print(format_table(metrics))
    return 0


if __name__ == "__main__":
    sys.exit(main())
