"""Parts that several entry points share: the parser, its options, and a configuration's errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

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
    from kd.errors import SpanwiseError

    try:
        return run(load_config(args.config, args.overrides))
    except SpanwiseError as error:
        tell(error, args.config, args.overrides)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command resumes from what was saved", file=sys.stderr)
        return 130
