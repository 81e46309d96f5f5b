"""Distil a tool-using teacher into a small student.

One command for each script of launch/, with the same options:

    spanwise plan --config configs/demo.yaml                           parameters, memory and work of a run
    spanwise train --config configs/demo.yaml                          one rank
    deepspeed --no_python spanwise train --config configs/demo.yaml    a rank on each GPU of this machine

`spanwise COMMAND --help` lists the options of one.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout that is not installed

COMMANDS = {
    "train": "train a student: on the truth alone, or from a teacher",
    "capture": "run the teacher over the data once and write its targets to disk",
    "generate": "make a data set: a teacher's endpoint answers prompts, within a budget",
    "verify": "check that data, or a run, is ready: every record, every span, one real step",
    "evaluate": "evaluate tool use of models on held-out records",
    "plan": "print parameters, memory and work of a run; nothing is loaded",
}


def parse(argv: list[str] | None = None) -> tuple[str, list[str]]:
    """Return the command's name and its own arguments.

    A launcher's --local_rank, which comes before the command, is handed on with the command's arguments.
    """
    commands = "\n".join(f"  {name:<9} {line}" for name, line in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="spanwise",
        description=__doc__,
        epilog=f"commands:\n{commands}",
        usage="spanwise [-h] COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--local_rank", default=None, help=argparse.SUPPRESS)  # deepspeed passes it to every program
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=f"one of {', '.join(COMMANDS)}")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="options of the command")
    args = parser.parse_args(argv)
    launcher = [] if args.local_rank is None else [f"--local_rank={args.local_rank}"]
    return args.command, [*launcher, *args.arguments]


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 all is well, 1 not, 2 wrong use."""
    name, arguments = parse(argv)
    command = importlib.import_module(f"launch.{name}")
    return command.main(arguments, prog=f"spanwise {name}")


def console() -> None:
    """Run the command of this process, and end the process."""
    code = main()
    from kd.distributed.exit import leave

    leave(code)


if __name__ == "__main__":
    console()
