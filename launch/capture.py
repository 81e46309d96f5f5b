"""Run the teacher over the data once and write its targets to disk, for training that then needs no teacher.

    deepspeed --no_python spanwise capture --config mine.yaml           writes teacher.cache.path, a rank on each GPU
    spanwise capture --config mine.yaml --retry-missing                 asks an endpoint again for missing records
    spanwise capture --config mine.yaml --verify 100                    checks the cache
    deepspeed --num_accelerators 2 launch/capture.py --config mine.yaml     from a checkout that is not installed

Killed or stopped, the same command resumes from the shards that are there. --verify reads every byte of a finished
cache and lets the teacher compute a random sample of records again. Exit code: 0 all is well, 1 not, 2 wrong use.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout that is not installed

from launch.shared import add_config_options, add_local_rank, make_parser, run_config


def parse(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, prog)
    add_config_options(parser, "the run's YAML, with teacher.cache (configs/)")
    parser.add_argument(
        "--verify",
        type=int,
        metavar="N",
        help="capture nothing: check every byte, and N random records against the teacher",
    )
    parser.add_argument(
        "--retry-missing", action="store_true", help="capture shards again in which records got no targets"
    )
    parser.add_argument(
        "--shard-rows",
        type=int,
        metavar="N",
        help="supervised rows of a shard, at least; a kill costs each rank one shard's work",
    )
    add_local_rank(parser)
    args = parser.parse_args(argv)
    for name in ("verify", "shard_rows"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: 1 or more")
    for name in ("retry_missing", "shard_rows"):
        if getattr(args, name) and args.verify is not None:
            parser.error(
                f"--{name.replace('_', '-')} is of capturing, and --verify captures nothing: leave one of them out"
            )
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    args = parse(argv, prog)

    def run(config) -> int:
        from kd.distributed.place import read_world_size
        from kd.run import check_capture_fits

        check_capture_fits(config, read_world_size())
        if args.verify is not None:
            from kd.teacher.capture.verify import verify_cache

            return 1 if verify_cache(config, args.verify) else 0
        from kd.teacher.capture.capture import capture

        options = {} if args.shard_rows is None else {"shard_rows": args.shard_rows}
        capture(config, retry_missing=args.retry_missing, **options)
        return 0

    return run_config(args, run)


if __name__ == "__main__":
    from kd.distributed.exit import leave

    leave(main())
