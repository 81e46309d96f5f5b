"""Train a student: on the truth alone, or from a teacher.

    spanwise train --config configs/demo.yaml --dry-run                  the plan; nothing is loaded
    spanwise train --config configs/demo.yaml                            one rank
    deepspeed --no_python spanwise train --config configs/demo.yaml      a rank on each GPU of this machine
    deepspeed --num_accelerators 2 launch/train.py --config configs/demo.yaml --set training.steps=100

The last line is of a checkout that is not installed, on two ranks of a machine without a GPU. Several machines:
`deepspeed --hostfile FILE ...`. Stopped or killed, the same command resumes from the newest good checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout that is not installed

from launch.shared import add_config_options, add_local_rank, make_parser, run_config, show_plan


def parse(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, prog)
    add_config_options(parser, "the run's YAML (configs/)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print parameters, memory and plan, load nothing, and exit"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start over, though the run folder has checkpoints to resume from"
    )
    add_local_rank(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    args = parse(argv, prog)

    def run(config) -> int:
        if args.dry_run:
            return show_plan(args, config)
        from kd.training.stopping import deaf_to_saves

        with deaf_to_saves():
            from kd.run import execute

            execute(config, fresh=args.fresh)
        return 0

    return run_config(args, run)


if __name__ == "__main__":
    from kd.distributed.exit import leave

    leave(main())
