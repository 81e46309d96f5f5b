"""Parts that several entry points share: the parser, its options, and a configuration's errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from kd.atomic_files import describe_failure, is_full
from kd.errors import SpanwiseError
from kd.paths import path_option


def make_parser(doc: str | None, prog: str | None) -> argparse.ArgumentParser:
    """Make a parser whose description is an entry point's docstring, line for line."""
    return argparse.ArgumentParser(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config_options(parser: argparse.ArgumentParser, config_help: str, *, required: bool = True) -> None:
    """Add --config, and --set as `overrides`, a list of "a.b=c"."""
    parser.add_argument("--config", required=required, type=lambda text: str(path_option(text)), help=config_help)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        dest="overrides",
        help="override one key of the YAML, repeatable",
    )


def add_local_rank(parser: argparse.ArgumentParser) -> None:
    """Accept the --local_rank that launchers pass; the environment has it too."""
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)


def run_config(args: argparse.Namespace, run: Callable[[Any], int]) -> int:
    """Return the exit code of `run`, which gets the RunConfig that args.config and args.overrides name.

    An error of ours is printed, and gives the exit code (SpanwiseError.exit_code); an interrupt gives 130.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from kd.config.load import load_config
    from kd.distributed.exit import tell

    return find_exit_code(
        lambda: run(load_config(args.config, args.overrides)),
        lambda error: tell(error, args.config, args.overrides),
        "the same command resumes from what was saved",
    )


def find_exit_code(work: Callable[[], int], tell: Callable[[SpanwiseError], None], interrupted: str) -> int:
    """Return what `work` returns, or the exit code of an error that a user can mend, which is printed.

    Args:
        tell: prints an error of ours.
        interrupted: said at an interrupt, which gives 130.
    """
    try:
        return work()
    except SpanwiseError as error:
        tell(error)
        return error.exit_code
    except OSError as error:
        if error.filename is None and not is_full(error):
            raise  # of no file: a fault of the program
        print(f"error: {describe_failure(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        return 130
