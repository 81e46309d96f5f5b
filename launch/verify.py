"""Check that data, or a run, is ready: every record, every span, one real step.

    spanwise verify --config configs/demo.yaml                  a run: its data, tokenizer, models, and one step
    spanwise verify --data train/*.jsonl --tokenizer FOLDER     data alone
        --spans OUT.jsonl      each record's text, token ids, calls and spans, or why it is refused
        --out FOLDER           verify.json, verify.html (spans in colours), bad.jsonl (what fails, as it was read)
        --fix CLEAN.jsonl      the records that are ready, in the chat format

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
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout that is not installed

from launch.shared import add_config_options, make_parser

# Exit codes: a wrong name in --data is the command's fault (2), one in a configuration makes the run not ready (1).
_WRONG = {False: 2, True: 1}
NUM_READY_SHOWN, NUM_FAILING_SHOWN = 40, 60


def parse(argv: list[str] | None = None, prog: str | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = make_parser(__doc__, prog)
    add_config_options(parser, "the run's YAML; its data files, tokenizer and models are checked", required=False)
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="FILE", help="files or globs of records, in place of --config"
    )
    parser.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer with a chat template, for --data")
    parser.add_argument("--format", help="the format of the records; by default found from their fields")
    parser.add_argument("--tools", metavar="PATH", help="file or folder of tools, for records that offer none")
    parser.add_argument("--spans", type=Path, metavar="FILE", help="write each record's spans here, a JSON line each")
    parser.add_argument("--fix", type=Path, metavar="FILE", help="write the records that are ready here")
    parser.add_argument(
        "--out",
        type=Path,
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
    if args.config and not Path(args.config).is_file():
        parser.error(f"--config: {args.config}: no such file")
    if args.overrides and not args.config:
        parser.error("--set goes with --config")
    if args.max_bad_fraction is not None and not 0 <= args.max_bad_fraction <= 1:
        parser.error("--max-bad-fraction: from 0 to 1")
    return parser, args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser, args = parse(argv, prog)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from kd.config.load import load_config
    from kd.config.registries import FORMATS
    from kd.models.tokenizer import load_tokenizer, read_rendering_tokenizer
    from kd.records.files import expand, read_all
    from kd.toolcalls.registry import ToolRegistry

    if args.format and args.format not in FORMATS:
        parser.error(f"--format: one of {', '.join(FORMATS.names())}")
    try:
        tools = ToolRegistry.load(args.tools) if args.tools else None
        config = load_config(args.config, args.overrides) if args.config else None
        if config is None:
            tokenizer, items = read_rendering_tokenizer(args.tokenizer), read_all(expand(args.data), args.format)
        else:
            from kd.config.derived import run_folder
            from kd.preflight.records import read_data_items

            tokenizer = load_tokenizer(config.tokenizer, config.teacher, config.student)
            items = read_data_items(config.data)
            args.out = args.out or run_folder(config.run)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _WRONG[bool(args.config)]
    return run(args, config, tokenizer, items, tools)


def run(args: argparse.Namespace, config, tokenizer, items, tools) -> int:
    from tqdm import tqdm

    from kd.preflight.read_back import SpanReader
    from kd.preflight.records import make_bad_line, make_spans_line, verify_records
    from kd.preflight.tally import Tally
    from kd.records.checks import DataError

    tally, shown, reader = Tally(), [], SpanReader(tokenizer)
    ready_shown = failing_shown = 0
    with ExitStack() as stack:
        spans, fixed = _open(stack, args.spans), _open(stack, args.fix)
        bad = _open(stack, args.out / "bad.jsonl") if args.out else None
        try:
            for verified in verify_records(tqdm(items, unit=" records", disable=None, leave=False), tokenizer, tools):
                tally.add(verified)
                if spans:
                    _write(spans, make_spans_line(verified, reader))
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
        except DataError as error:  # a file or a package is missing, or BFCL's truth is unreadable
            print(f"error: {error}", file=sys.stderr)
            return _WRONG[bool(args.config)]
    checks: list[dict[str, Any]] = []
    if config is not None:
        from kd.preflight.run import check_run

        checks = list(check_run(config, tokenizer))
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

    print(format_tally(tally, checks))
    verdict = "READY" if ready else "NOT READY"
    if args.out:
        result = summarise_tally(tally, ready, checks)
        (args.out / "verify.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        title = args.config or ", ".join(args.data)
        (args.out / "verify.html").write_text(
            build_verify_page(f"{verdict.capitalize()}: {title}", tally, shown, tokenizer, verdict, checks),
            encoding="utf-8",
        )
        print(f"page      {args.out / 'verify.html'}")
    print(verdict)


def _open(stack: ExitStack, path: Path | None) -> TextIO | None:
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    return stack.enter_context(path.open("w", encoding="utf-8"))


def _write(out: TextIO, value: dict[str, Any]) -> None:
    out.write(json.dumps(value, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
