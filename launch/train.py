"""Train a student: on the truth alone, or from a teacher.

deepspeed launch/train.py --config configs/demo.yaml
deepspeed --num_accelerators 2 launch/train.py --config configs/demo.yaml --set training.steps=100
python launch/train.py --config configs/student_9b_gqa.yaml --dry-run
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout that is not installed


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the run's YAML (configs/)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", dest="overrides", help="override one key, repeatable"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print parameters, memory and plan, load nothing, and exit"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="begin again, though the run folder has checkpoints to go on from"
    )
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # some launchers pass it
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from kd.config.load import load_config
    from kd.distributed.exit import tell
    from kd.errors import SpanwiseError

    try:
        config = load_config(args.config, args.overrides)
        if args.dry_run:
            from kd.run import dry_run

            print(dry_run(config, int(os.environ.get("WORLD_SIZE", "1"))))
            return 0
        from kd.run import execute

        execute(config, fresh=args.fresh)
    except SpanwiseError as error:
        tell(error, args.config, args.overrides)
        return 1
    return 0


if __name__ == "__main__":
    from kd.distributed.exit import leave

    leave(main())
