"""Options that several entry points share."""

from __future__ import annotations

import argparse


def add_config_options(parser: argparse.ArgumentParser, config_help: str, *, required: bool = True) -> None:
    """Add --config, and --set as `overrides`, a list of "a.b=c"."""
    parser.add_argument("--config", required=required, help=config_help)
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
