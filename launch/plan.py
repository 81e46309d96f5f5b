"""Print what a run needs, before anything is rented or loaded: parameters, memory of each GPU, work.

    spanwise plan --config configs/student_9b_gqa.yaml --world-size 8
    python launch/plan.py --config configs/student_9b_gqa.yaml --set training.micro_batch_size=2
    spanwise plan --config configs/student_9b_gqa.yaml --world-size 8 --gpu-memory 80 --host-memory 1000

With teacher.cache it also gives the cache's size on disk, from a sample of the data. `train --dry-run` prints the same.
Exit code: 0 it fits, 1 there is a PROBLEM, 2 wrong use.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout that is not installed

from launch.shared import add_config_options, make_parser, run_config, show_plan


def parse(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, prog)
    add_config_options(parser, "the run's YAML (configs/)")
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="ranks to plan for; by default WORLD_SIZE of the environment, or 1"
    )
    for what in ("gpu", "host"):
        help = f"memory of one {what} to plan for; by default this machine's"
        parser.add_argument(f"--{what}-memory", type=float, metavar="GIB", help=help)
    args = parser.parse_args(argv)
    for name in ("gpu_memory", "host_memory"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1e6:
            parser.error(f"--{name.replace('_', '-')}: {value:g}, where GiB above 0 are needed, below a million")
    if args.world_size is not None and args.world_size < 1:
        parser.error(f"--world-size: {args.world_size}, where 1 or more is needed")
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    args = parse(argv, prog)

    def run(config) -> int:
        return show_plan(args, config, args.world_size, (args.gpu_memory, args.host_memory))

    return run_config(args, run)


if __name__ == "__main__":
    sys.exit(main())
