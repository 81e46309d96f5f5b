"""Evaluate tool use of models on held-out records.

    spanwise evaluate --model teacher=runs/demo/teacher --model student=runs/demo/student \\
        --data unseen_values=held_out/values.jsonl --data unseen_tools=held_out/tools.jsonl --out runs/demo

writes OUT/evaluation.json and OUT/cases.jsonl. A model is a `save_pretrained` folder with its tokenizer, a hub id, a
run or a checkpoint of it (also while it trains), or the address of an OpenAI-compatible server (docs/evaluation.md).
Answers are greedy, or sampled (--temperature) with pass@k of --num-samples. With a launcher the ranks share the turns:

    deepspeed --num_accelerators 2 launch/evaluate.py --model runs/demo/student --data held_out.jsonl --out runs/demo

    spanwise evaluate --model runs/demo/student --bfcl non_live multi_turn --out runs/demo

asks BFCL's entries and has its own package judge the answers; --conversations holds each record as a whole.

    spanwise evaluate --compare one=runs/a/evaluation.json two=runs/b/evaluation.json --out runs/both

pairs models of earlier evaluations record by record, writes OUT/comparison.html and OUT/comparison.md, and prints the
latter. Exit code: 0 all is well, 1 not, 2 wrong use.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout that is not installed

import torch
from pydantic import ValidationError
from tqdm import tqdm

from kd.config.schema import Endpoint
from kd.config.sections.hub_address import SCHEME
from kd.distributed.collectives import on_every_rank, on_rank_0
from kd.distributed.place import read_place
from kd.evaluation.answerers.answer import Progress
from kd.evaluation.answerers.journal import Journal
from kd.evaluation.answerers.local_model import EvaluationError
from kd.evaluation.answerers.opening import Asking, is_address, make_ready, settle
from kd.evaluation.cases import build_cases, explain_unwritable
from kd.evaluation.comparison import read_evaluations
from kd.evaluation.evaluate import Samples
from kd.evaluation.files import format_comparison, format_table, list_outputs, write_comparison_table
from kd.evaluation.together import Entrant, evaluate_together, find_place
from kd.folders.lock import FolderLock
from kd.outputs import Output, OutputError, check_outputs
from kd.paths import identify, path_option
from kd.records.caws.context import read_context
from kd.records.checks import DataError
from kd.records.files import read_records
from kd.records.record import Record
from kd.reports.comparison_page import write_comparison
from kd.reports.html import is_page
from kd.rollouts.decode import Sampling
from launch.further import add_further, check_further, prepare_further
from launch.shared import add_local_rank, add_verbose, make_parser, run_guarded

_ENDPOINT = {  # option -> field of kd.config.schema.Endpoint, type, help
    "--api-key-env": ("api_key_env", str, "name of the environment variable that holds the endpoint's key"),
    "--concurrency": ("concurrency", int, "requests to an endpoint under way at once, of each rank"),
    "--timeout": ("timeout_seconds", float, "seconds of one request"),
    "--prompt-deadline": ("record_deadline_seconds", float, "seconds of one prompt with all its attempts"),
    "--deadline": ("deadline_seconds", float, "seconds of one split; what was answered is kept"),
}
_FIRST = 32  # records that are looked at for one that has something to ask, before all are


def parse(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, prog)
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        type=_split_model,
        metavar="[NAME=]MODEL",
        help="folder of a saved model, hub id as ID or ID@REVISION, a run or its checkpoint, http address; repeatable",
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
    parser.add_argument(
        "--caws", action="store_true", help="score the answers to records with `caws` by their working specs too"
    )
    _add_endpoint(parser)
    _add_sampling(parser)
    add_further(parser)
    add_verbose(parser)
    add_local_rank(parser)
    args = parser.parse_args(argv)
    if args.compare and (args.model or args.data):
        parser.error("--compare: it takes evaluations that were written before, and no --model or --data")
    if not args.compare:
        needed = ("model", "out") if args.bfcl else ("model", "data", "out")
        absent = [f"--{name}" for name in needed if not getattr(args, name)]
        if absent:
            parser.error(f"the following arguments are required: {', '.join(absent)}")
    for option, pairs in (("--model", args.model), ("--data", args.data), ("--compare", args.compare)):
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            parser.error(f"{option}: two are called {max(names, key=names.count)!r}; name them apart, as in NAME=PATH")
        # Path.exists raises without rights.
        files = [str(path) for _, path in pairs if option != "--model" and not str(path).startswith(SCHEME)]
        missing = [path for path in files if not os.path.exists(path)]
        if missing:
            parser.error(f"{option}: no such file: {', '.join(missing)}")
    for _, path in args.compare:
        if not os.path.isfile(path):
            parser.error(f"--compare: {path} is no file: give an evaluation.json")
    places = [identify(path) for _, path in args.data]
    if len(set(places)) < len(places):
        parser.error(f"--data: {args.data[places.index(max(places, key=places.count))][1]} is given twice")
    for name in ("batch_size", "max_new_tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: 1 or more")
    args.sampling = _read_sampling(parser, args)
    args.endpoint = _read_endpoint(parser, args)
    check_further(parser, args)
    return args


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="answers to each turn; gives pass@k")
    parser.add_argument("--temperature", type=float, metavar="T", help="sample at it; greedy by default")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="sample from the likeliest tokens of this mass; 1 by default"
    )
    parser.add_argument("--seed", type=int, help="of the samples; 0 by default")


def _read_sampling(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Sampling | None:
    if args.num_samples < 1:
        parser.error("--num-samples: 1 or more")
    given = [name for name in ("--num-samples", "--top-p", "--seed") if getattr(args, name[2:].replace("-", "_"))]
    if args.temperature is None:
        given = [name for name in given if name != "--num-samples" or args.num_samples > 1]
        if given:
            parser.error(f"{given[0]}: greedy answers are all the same: give --temperature too")
    elif not 0 < args.temperature < math.inf or args.top_p is not None and not 0 < args.top_p <= 1:
        parser.error("--temperature is above 0 (leave it out for greedy answers), --top-p above 0 and at most 1")
    args.seed = args.seed or 0
    return None if args.temperature is None else Sampling(args.temperature, 1.0 if args.top_p is None else args.top_p)


def _split_model(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if is_address(text) or not equals:
        name, place = "", text
    if is_address(place):
        return name or urlsplit(place).netloc, place
    place = str(path_option(place))
    return name or Path(place).name, place


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--endpoint-model",
        action="append",
        default=[],
        metavar="[NAME=]SERVED",
        help="model that the endpoint NAME serves, or every endpoint; the only one it has by default; repeatable",
    )
    for option, (key, kind, what) in _ENDPOINT.items():
        default = Endpoint.model_fields[key].default
        shown = what if default is None else f"{what}; {default:g} by default"
        parser.add_argument(option, dest=key, type=kind, metavar="X", help=shown)


def _read_endpoint(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Endpoint | None:
    """Read the options of endpoints, of which each gets its own address and model later; None without an address."""
    given = {key: value for key, *_ in _ENDPOINT.values() if (value := getattr(args, key)) is not None}
    addresses = [place for _, place in args.model if is_address(place)]
    if not addresses and (given or args.endpoint_model):
        parser.error("--endpoint-model and other options of an endpoint go with an address (http://...) as --model")
    settings = None
    for address in addresses:
        try:
            settings = Endpoint.model_validate({**given, "url": address, "model": "served"})
        except ValidationError as error:
            first = error.errors()[0]
            option = next((option for option, (key, *_) in _ENDPOINT.items() if key in first["loc"]), "--model")
            parser.error(f"{option}: {first['msg']}")
    args.served = dict(text.rpartition("=")[::2] for text in args.endpoint_model)
    unknown = args.served.keys() - {""} - {name for name, place in args.model if is_address(place)}
    if unknown:
        parser.error(f"--endpoint-model: no --model with an address is called {min(unknown)!r}")
    return settings


def _split_name(text: str) -> tuple[str, Path]:
    name, equals, path = ("", "", text) if text.startswith(SCHEME) else text.partition("=")
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


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    args = parse(argv, prog)
    return run_guarded(
        lambda: compare(args.compare, args.out or Path()) if args.compare else evaluate(args),
        verbose=args.verbose,
        interrupted="nothing was written"
        if args.compare
        else "models that had given all answers are in OUT/cases.jsonl; the same command asks no endpoint twice",
    )


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate every model on every split, write the files, and print the table; on all ranks of a launcher."""
    device = _join_ranks()
    lock = FolderLock(args.out)  # a run's too: what it evaluates at its end is written there
    on_rank_0(lambda: _take(args, lock))
    try:
        return _evaluate(args, device)
    finally:
        lock.release()


def _take(args: argparse.Namespace, lock: FolderLock) -> None:
    check_outputs(list_outputs("--out", args.out), [("--data", path) for _, path in args.data])
    holder = lock.take()
    if holder is not None:
        raise OutputError(f"--out: {args.out} is in use by {holder}: wait for it, end it, or name another folder")


def _evaluate(args: argparse.Namespace, device: torch.device) -> int:
    args.model = on_rank_0(lambda: [(name, settle(place, _say)) for name, place in args.model])
    journal = Journal(args.out, find_place()[0])
    if args.endpoint and journal.num_kept:
        _say(f"{journal.num_kept} answers are there from an earlier start: remove {journal.folder} to ask anew")
    asking = Asking(
        args.max_new_tokens, args.sampling, args.batch_size, device, args.endpoint, args.served, journal, _say
    )
    entrants = on_every_rank(lambda: _prepare(args, asking))
    metrics = evaluate_together(
        entrants, args.out, Samples(args.num_samples, args.seed), say=_say, show=_show if _is_first() else None
    )
    on_rank_0(journal.remove)
    _say(format_table(metrics))
    return 0


def _join_ranks() -> torch.device:
    """Join the launcher's ranks, where there is a launcher; returns this rank's device."""
    if read_place() is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    from kd.distributed.start import start_distributed

    start_distributed()
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _prepare(args: argparse.Namespace, asking: Asking) -> list[Entrant]:
    """Look at every model, and render this rank's share of every split for it, before any is asked."""
    records = {split: _read(path) for split, path in args.data}
    if args.caws:
        _check_caws(records)
    further = prepare_further(args, records)
    entrants = []
    for name, place in args.model:
        ready = make_ready(name, place, asking)
        cases = {}
        for split, path in args.data:
            try:
                cases[split] = build_cases(records[split], ready.tokenizer, find_place())
                if args.caws:
                    cases[split] = [replace(case, caws=records[split][case.record].caws) for case in cases[split]]
            except DataError as error:
                raise DataError(f"{name} on {path}: {error}") from error
            if _is_first() and ready.tokenizer is not None:
                unwritable = explain_unwritable(records[split], ready.tokenizer)
                _say(f"{name} on {path}: {unwritable}") if unwritable else None
        entrants.append(Entrant(name, ready.open, cases, further))
    return entrants


def _check_caws(records: dict[str, list[Record]]) -> None:
    """Check the contexts of all records, before any is asked."""
    found = [record for own in records.values() for record in own if record.caws is not None]
    if not found:
        raise EvaluationError(
            "--caws: no record of --data has `caws`: give records of spanwise generate, or leave it out"
        )
    for record in found:
        read_context(record.caws, f"--caws: record {record.id}")


def _read(path: Path) -> list[Record]:
    records = list(read_records(path))
    if not build_cases(records[:_FIRST]) and not build_cases(records):
        raise EvaluationError(
            f"--data: {path}: nothing to ask in its {len(records)} records: none calls a tool, offers one, or uses a "
            "tool's result; give other records"
        )
    return records


def _is_first() -> bool:
    return find_place()[0] == 0


def _say(text: str) -> None:
    if _is_first():
        print(text, flush=True)


def _show(text: str) -> Progress:
    bar = tqdm(desc=text, unit="turn", disable=None, leave=False)

    def show(num_done: int, num_prompts: int) -> None:
        bar.total = num_prompts
        bar.update(num_done - bar.n)
        if num_done == num_prompts:
            bar.close()

    return show


if __name__ == "__main__":
    from kd.distributed.exit import leave

    leave(main())
