"""Parts that several entry points share: the parser, its options, and a configuration's errors."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
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
    add_verbose(parser)


def add_local_rank(parser: argparse.ArgumentParser) -> None:
    """Accept the --local_rank that launchers pass; the environment has it too."""
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add --verbose."""
    parser.add_argument(
        "--verbose", action="store_true", help="show the libraries' own messages too, on every rank, and tracebacks"
    )


def run_config(args: argparse.Namespace, run: Callable[[Any], int]) -> int:
    """Return the exit code of `run`, which gets the RunConfig that args.config and args.overrides name; see
    run_guarded.
    """

    def work() -> int:
        from kd.config.load import load_config

        return run(load_config(args.config, args.overrides))

    return run_guarded(work, verbose=args.verbose, config=args.config, overrides=args.overrides)


def show_plan(
    args: argparse.Namespace,
    config: Any,
    world_size: int | None = None,
    gib: tuple[float | None, float | None] = (None, None),
) -> int:
    """Print the plan of `config`, and return 1 where it has a problem, else 0.

    Args:
        world_size: ranks; by default the launcher's.
        gib: memory of one GPU and of one host; None for this machine's.
    """
    from kd.config.places import add_places
    from kd.distributed.place import read_world_size
    from kd.preflight.plan import format_plan
    from kd.run import dry_run, memory_here

    memory = memory_here(*(None if size is None else int(size * (1 << 30)) for size in gib))
    plan = dry_run(config, world_size or read_world_size(), memory)
    problems = tuple(add_places(problem, args.config, args.overrides) for problem in plan.problems)
    print(format_plan(replace(plan, problems=problems)))
    return 1 if problems else 0


def run_guarded(
    work: Callable[[], int],
    *,
    verbose: bool = False,
    config: str = "",
    overrides: Sequence[str] = (),
    interrupted: str = "the same command resumes from what was saved",
) -> int:
    """Return the exit code of `work`, with the libraries quiet unless `verbose`.

    An error of ours, or of the machine's (a file, memory), is printed in one piece and once a job, and gives the exit
    code (SpanwiseError.exit_code, else 1); an interrupt gives 130. Any other error is a fault of the program: its
    traceback is printed, also once a job.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from kd.distributed.exit import tell
    from kd.distributed.quiet import quieten
    from kd.errors import SpanwiseError

    _open_streams()
    quieten(verbose=verbose)
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a terminal of another encoding loses no run
        return work()
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print(f"interrupted: {interrupted}", file=sys.stderr)
        return 130
    except Exception as error:
        if verbose:
            traceback.print_exc()
        tell(error if isinstance(error, SpanwiseError) else _explain(error), config, overrides)
        return getattr(error, "exit_code", 1)


def _open_streams() -> None:
    """Open /dev/null in place of a closed stream: a file would get its number, and what is printed with it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115 - it stays open


def _explain(error: Exception) -> Exception:
    """Return an error that says what the machine lacks, or that the program is at fault."""
    if isinstance(error, OSError) and error.strerror:
        from kd.atomic_files import describe_failure

        text = describe_failure(error)
        return Exception(text if error.filename else f"what is printed, or a file, cannot be written: {text}")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        text = (str(error).splitlines() or ["out of memory"])[0]
        return Exception(
            f"{text}: lower training.micro_batch_size or a stage's max_length; spanwise plan says what fits"
        )
    shown = "".join(traceback.format_exception(error))
    return Exception(f"a fault of the program: report it with these lines\n{shown.rstrip()}")
