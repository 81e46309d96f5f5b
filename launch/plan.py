"""Print what a run needs, before anything is rented or loaded: parameters, memory of each GPU, work, time and money.

    spanwise plan --config configs/student_9b_gqa.yaml --world-size 8
    python launch/plan.py --config configs/student_9b_gqa.yaml --set training.micro_batch_size=2
    spanwise plan --config configs/student_9b_gqa.yaml --world-size 8 --gpu-memory 80 --host-memory 1000
    spanwise plan --config configs/student_9b_gqa.yaml --gpus 8 16 32 --gpu-memory 80 141 --price 2.5 --html plan.html

With --gpus it prints a table of counts, sizes and settings. With teacher.cache it also gives the cache's size on disk,
from a sample of the data. `train --dry-run` prints the plan of one count. Exit code: 0 it fits, or something in the
table does, 1 there is a PROBLEM, or nothing fits, 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout that is not installed

from kd.paths import path_option
from launch.shared import add_config_options, make_parser, run_config, show_plan

_LEAST_RATE = 1e-9  # products of smaller ones are 0
_RATES = (  # option, field of Rates, its unit, and in words
    ("--peak-tflops", "peak_flops", 1e12, "TFLOP/s of one GPU; 989 by default, dense bf16 of an H100"),
    ("--mfu", "mfu", 1, "part of the peak that training reaches; 0.4 by default"),
    ("--within-host", "within_host", 1e9, "GB/s of a GPU to others of its host; 200 by default"),
    ("--across-hosts", "across_hosts", 1e9, "GB/s of a GPU to those of other hosts; 25 by default"),
    ("--price", "price", 1, "of a GPU-hour, in any currency"),
)


def parse(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, prog)
    add_config_options(parser, "the run's YAML (configs/)")
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="ranks to plan for; by default WORLD_SIZE of the environment, or 1"
    )
    parser.add_argument("--gpus", type=int, nargs="+", metavar="N", help="counts of GPUs of a table")
    parser.add_argument(
        "--gpu-memory",
        type=float,
        nargs="+",
        metavar="GIB",
        help="memory of one GPU to plan for, several with --gpus; by default this machine's, 80 and 141 with --gpus",
    )
    parser.add_argument(
        "--host-memory", type=float, metavar="GIB", help="memory of one host to plan for; by default this machine's"
    )
    for option, field, _, help in _RATES:
        parser.add_argument(option, dest=field, type=float, metavar="X", help=f"with --gpus: {help}")
    parser.add_argument("--html", type=path_option, metavar="FILE", help="with --gpus: also write the table as a page")
    parser.add_argument("--json", type=path_option, metavar="FILE", help="with --gpus: also write the table as JSON")
    args = parser.parse_args(argv)
    for name in ("gpu_memory", "host_memory"):
        found = getattr(args, name)
        for value in found if isinstance(found, list) else [found]:
            if value is not None and not 0 < value < 1e6:
                parser.error(f"--{name.replace('_', '-')}: {value:g}, where GiB above 0 are needed, below a million")
    for name in ("world_size", "gpus"):
        found = getattr(args, name)
        for value in found if isinstance(found, list) else [found]:
            if value is not None and not 1 <= value <= 1_000_000:
                parser.error(f"--{name.replace('_', '-')}: {value}, where 1 to 1,000,000 is needed")
    for option, field, _, _ in _RATES:
        value = getattr(args, field)
        most = 1 if field == "mfu" else 1e9
        if value is not None and not _LEAST_RATE <= value <= most:
            parser.error(f"{option}: {value:g}, where a number from {_LEAST_RATE:g} to {most:g} is needed")
    if args.gpus is None:
        of_a_table = [("--html", "html"), ("--json", "json"), *((option, field) for option, field, _, _ in _RATES)]
        only = [option for option, field in of_a_table if getattr(args, field) is not None]
        if only or len(args.gpu_memory or []) > 1:
            parser.error(f"{only[0] if only else 'several --gpu-memory'}: only with --gpus, the counts of a table")
    return args


def _show_table(args: argparse.Namespace, config) -> int:
    from kd.atomic_files import publish
    from kd.outputs import Output, check_outputs, read_object
    from kd.preflight.rental.table import MADE_BY, Rates, format_table, make_table
    from kd.reports.html import is_page
    from kd.reports.plan_page import write_plan
    from kd.run import tokenizer_length

    outputs = [
        Output("--html", args.html, "a page", is_page) if args.html else None,
        Output("--json", args.json, "a table of a plan", lambda path: read_object(path).get("made_by") == MADE_BY)
        if args.json
        else None,
    ]
    check_outputs(filter(None, outputs), [("--config", Path(args.config))])
    given = {field: value * unit for _, field, unit, _ in _RATES if (value := getattr(args, field)) is not None}
    rates = Rates(**given, host_bytes=None if args.host_memory is None else int(args.host_memory * (1 << 30)))
    sizes = [int(gib * (1 << 30)) for gib in args.gpu_memory or (80, 141)]
    table = make_table(config, args.gpus, sizes, rates, tokenizer_length=tokenizer_length(config))
    print(format_table(table))
    if args.html:
        write_plan(args.html, table)
    if args.json:
        publish(args.json, (json.dumps(table.as_json(), indent=1) + "\n").encode())
    return 0 if any(row.fits for row in table.rows) else 1


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    args = parse(argv, prog)

    def run(config) -> int:
        if args.gpus is not None:
            return _show_table(args, config)
        return show_plan(args, config, args.world_size, ((args.gpu_memory or [None])[0], args.host_memory))

    return run_config(args, run)


if __name__ == "__main__":
    sys.exit(main())
