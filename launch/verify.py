"""Check that data, or a run, is ready: every record, every span, one real step.

    spanwise verify --config configs/demo.yaml                  a run: its data, tokenizer, models, and one step
    spanwise verify --data train/*.jsonl --tokenizer FOLDER     data alone
        --spans OUT.jsonl      each record's text, token ids, calls and spans, or why it is refused
        --out FOLDER           verify.json, verify.html (spans in colours), bad.jsonl (what fails, as it was read)
        --fix CLEAN.jsonl      the records that are ready, in the chat format: a new file

What an earlier check wrote is replaced once all is read, but not CLEAN.jsonl, which looks like any file of yours.
Files: JSON lines, JSON, Parquet, Arrow, compressed or not, in any format of kd/records/formats/; BFCL's
possible_answer files are given beside its questions. Exit code: 0 ready, 1 not ready, 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout that is not installed

from kd.atomic_files import describe_failure, publish, replacing
from kd.outputs import Output, check_outputs, read_object
from kd.paths import path_option
from launch.shared import add_config_options, make_parser, run_guarded

# Exit codes: a wrong name in --data is the command's fault (2), one in a configuration makes the run not ready (1).
_WRONG = {False: 2, True: 1}
NUM_READY_SHOWN, NUM_FAILING_SHOWN = 40, 60
SUMMARY, PAGE, BAD = "verify.json", "verify.html", "bad.jsonl"  # in --out


def parse(argv: list[str] | None = None, prog: str | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = make_parser(__doc__, prog)
    add_config_options(parser, "the run's YAML; its data files, tokenizer and models are checked", required=False)
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        type=path_option,
        metavar="FILE",
        help="files or globs of records, in place of --config",
    )
    parser.add_argument(
        "--tokenizer", type=path_option, metavar="FOLDER", help="tokenizer with a chat template, for --data"
    )
    parser.add_argument("--format", help="the format of the records; by default found from their fields")
    parser.add_argument(
        "--rewrite-calls",
        nargs="?",
        const=True,
        default=False,
        choices=["never"],
        help="with --data: make tool_calls of calls that are written as text; `never` keeps even Hermes' as text",
    )
    parser.add_argument(
        "--tools", type=path_option, metavar="PATH", help="file or folder of tools, for records that offer none"
    )
    parser.add_argument(
        "--spans", type=path_option, metavar="FILE", help="write each record's spans here, a JSON line each"
    )
    parser.add_argument(
        "--fix", type=path_option, metavar="FILE", help="write the records that are ready to a new file"
    )
    parser.add_argument(
        "--out",
        type=path_option,
        metavar="FOLDER",
        help="folder for verify.json, verify.html and bad.jsonl; with --config the run's folder",
    )
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        metavar="X",
        help="of records that may fail, from 0 to 1; default 0, with --config data.max_bad_fraction",
    )
    args = parser.parse_args(argv)
    if bool(args.config) == bool(args.data):
        parser.error("give one of --config and --data")
    if args.data and not args.tokenizer or args.config and args.tokenizer:
        parser.error("--tokenizer goes with --data, and --data needs it")
    if args.config and not os.path.isfile(args.config):
        parser.error(f"--config: {args.config}: no such file")
    if args.rewrite_calls and not args.data:
        parser.error("--rewrite-calls goes with --data; in a configuration it is data.rewrite_calls")
    if args.overrides and not args.config:
        parser.error("--set goes with --config")
    if args.max_bad_fraction is not None and not 0 <= args.max_bad_fraction <= 1:
        parser.error("--max-bad-fraction: from 0 to 1")
    return parser, args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser, args = parse(argv, prog)
    return run_guarded(lambda: verify(parser, args), verbose=args.verbose, interrupted="no file is half written")


def verify(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Open what the arguments name, check it, and return the exit code."""
    from kd.config.load import load_config
    from kd.config.registries import FORMATS
    from kd.models.tokenizer import load_tokenizer, read_rendering_tokenizer
    from kd.records.checks import DataError
    from kd.records.files import expand, read_all
    from kd.sources.inputs import find_shared, list_data_files
    from kd.toolcalls.registry import ToolRegistry

    if args.format and args.format not in FORMATS:
        parser.error(f"--format: one of {', '.join(FORMATS.names())}")
    try:
        tools = ToolRegistry.load(args.tools) if args.tools else None
        config = load_config(args.config, args.overrides) if args.config else None
        if config is None:
            files = expand(args.data)
            check_places(args, [("--data", file) for file in files])
            tokenizer = read_rendering_tokenizer(str(args.tokenizer))
            items = read_all(files, args.format, rewrite_calls=args.rewrite_calls)
        else:
            from kd.config.derived import run_folder
            from kd.preflight.records import read_data_items

            args.out = args.out or run_folder(config.run)
            check_places(args, [("--config", Path(args.config)), *list_data_files(config.data)])
            for note in find_shared(config.data):
                _note(note)
            tokenizer = load_tokenizer(config.tokenizer, config.teacher, config.student)
            items = read_data_items(config.data)
    except (ValueError, OSError) as error:
        print(f"error: {describe_failure(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return _WRONG[bool(args.config)]
    try:
        return run(args, config, tokenizer, items, tools)
    except DataError as error:  # a file or a package is missing, or BFCL's truth is unreadable
        print(f"error: {error}", file=sys.stderr)
        return _WRONG[bool(args.config)]


def check_places(args: argparse.Namespace, inputs: list[tuple[str, Path]]) -> None:
    """Check all that will be written, before anything is read. Raises OutputError."""
    from kd.records.quarantine import is_quarantine
    from kd.reports.html import is_page

    outputs = [Output("--fix", args.fix, "a file that may be replaced")] if args.fix else []
    if args.spans:
        outputs.append(Output("--spans", args.spans, "a file of spans", _is_spans))
    if args.out:
        outputs += [
            Output("--out", args.out / SUMMARY, "a readiness check's summary", _is_summary),
            Output("--out", args.out / PAGE, "a readiness check's page", is_page),
            Output("--out", args.out / BAD, "a file of refused records", is_quarantine),
        ]
    check_outputs(outputs, [*inputs, *([("--tools", args.tools)] if args.tools else [])])


def _is_spans(path: Path) -> bool:
    line = read_object(path)
    return {"id", "file", "line"} <= line.keys() and ("refused" in line or "token_ids" in line)


def _is_summary(path: Path) -> bool:
    return {"ready", "records", "files", "checks", "round_trip"} <= read_object(path).keys()


def run(args: argparse.Namespace, config, tokenizer, items, tools) -> int:
    from tqdm import tqdm

    from kd.preflight.call_syntax import check_call_syntax
    from kd.preflight.read_back import SpanReader
    from kd.preflight.records import make_bad_line, make_spans_lines, verify_records
    from kd.preflight.tally import Tally

    tally = Tally(lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    shown, reader = [], SpanReader(tokenizer)
    ready_shown = failing_shown = 0
    with ExitStack() as stack:
        spans, fixed = _open(stack, args.spans), _open(stack, args.fix, new=True)
        bad = _open(stack, args.out / BAD) if args.out else None
        turns = config.data.turns if config is not None else "auto"
        shown_items = tqdm(items, unit=" records", disable=None, leave=False)
        for verified in verify_records(shown_items, tokenizer, tools, turns):
            tally.add(verified)
            if spans:
                for line in make_spans_lines(verified, reader):
                    _write(spans, line)
            if fixed and verified.ready and verified.record:
                _write(fixed, asdict(verified.record))
            if bad and not verified.ready:
                _write(bad, make_bad_line(verified))
            if (
                verified.ready
                and ready_shown < NUM_READY_SHOWN
                or not verified.ready
                and failing_shown < NUM_FAILING_SHOWN
            ):
                shown.append(verified)
                ready_shown, failing_shown = ready_shown + verified.ready, failing_shown + (not verified.ready)
    from kd.models.tokenizer import name_tokenizer
    from kd.preflight.agreement import check_tokenizer_file
    from kd.preflight.run import check_run, run_check

    named = (args.tokenizer, None)
    if config is not None:
        named = name_tokenizer(config.tokenizer, config.teacher, config.student)[1:]
    texts = [sequence.text for verified in shown for sequence in verified.sequences]
    checks: list[dict[str, Any]] = [
        *([check_call_syntax(tokenizer)] if tally.total["calls"] else []),
        run_check("tokenizer reads as its file", lambda: check_tokenizer_file(tokenizer, texts, *named)),
        *(check_run(config, tokenizer, _note) if config is not None else ()),
    ]
    allowed = (
        args.max_bad_fraction
        if args.max_bad_fraction is not None
        else config.data.max_bad_fraction
        if config is not None
        else 0.0
    )
    ready = tally.ready(allowed) and all(check["ok"] is not False for check in checks)
    report(args, tally, shown, tokenizer, ready, checks)
    return 0 if ready else 1


def report(args: argparse.Namespace, tally, shown: list, tokenizer, ready: bool, checks: list[dict[str, Any]]) -> None:
    from kd.preflight.tally import format_tally, summarise_tally
    from kd.reports.preflight_page import build_verify_page

    verdict = "READY" if ready else "NOT READY"
    if args.out:  # before a line is printed, which nobody may read any more
        result = summarise_tally(tally, ready, checks)
        title = args.config or ", ".join(map(str, args.data))
        page = build_verify_page(f"{verdict.capitalize()}: {title}", tally, shown, verdict, checks)
        publish(args.out / SUMMARY, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
        publish(args.out / PAGE, page.encode())
    print(format_tally(tally, checks))
    if args.out:
        print(f"page      {args.out / PAGE}")
    print(verdict)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _open(stack: ExitStack, path: Path | None, *, new: bool = False) -> BinaryIO | None:
    return None if path is None else stack.enter_context(replacing(path, new=new))


def _write(out: BinaryIO, value: dict[str, Any]) -> None:
    out.write((json.dumps(value, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
