"""Print what a run needs, before anything is rented or loaded: parameters, memory of each GPU, work.

    spanwise plan --config configs/student_9b_gqa.yaml --world-size 8
    python launch/plan.py --config configs/student_9b_gqa.yaml --set training.micro_batch_size=2

With teacher.cache it also gives the cache's size on disk, from a sample of the data. `train --dry-run` prints the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout that is not installed

from launch.shared import add_config_options, make_parser, run_config


def parse(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, prog)
    add_config_options(parser, "the run's YAML (configs/)")
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="ranks to plan for; by default WORLD_SIZE of the environment, or 1"
    )
    args = parser.parse_args(argv)
    if args.world_size is not None and args.world_size < 1:
        parser.error(f"--world-size: {args.world_size}, where 1 or more is needed")
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    args = parse(argv, prog)

    def run(config) -> int:
        from kd.distributed.place import read_world_size
        from kd.run import dry_run

        print(dry_run(config, args.world_size or read_world_size()))
        return 0

    return run_config(args, run)


if __name__ == "__main__":
    sys.exit(main())
