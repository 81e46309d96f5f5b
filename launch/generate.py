"""Make a data set: a teacher behind an OpenAI-compatible endpoint answers prompts, calling tools over several turns.

    spanwise generate --config generate.yaml --dry-run     asks a sample, and says what all would cost
    spanwise generate --config generate.yaml

writes output_dir/train.jsonl, the held-out splits, and card.json. Prompts come from files or are composed of a folder
of tools (docs/generation.md). Nothing is paid twice: what is stopped, by a kill, an error or the limit of the money,
goes on by the same command. Exit code: 0 all is well, also where the limit ended it, 1 not, 2 wrong use.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a checkout that is not installed

from launch.shared import add_config_options, make_parser, run_guarded

SAMPLE = 16  # prompts of --dry-run


def parse(argv: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, prog)
    add_config_options(parser, "the data set's YAML")
    parser.add_argument(
        "--dry-run",
        nargs="?",
        const=SAMPLE,
        type=int,
        metavar="N",
        help=f"ask the first N prompts, {SAMPLE} by default, and estimate the cost of all; their answers are kept",
    )
    args = parser.parse_args(argv)
    if not os.path.isfile(args.config):
        parser.error(f"--config: {args.config}: no such file")
    if args.dry_run is not None and args.dry_run < 1:
        parser.error("--dry-run: 1 or more")
    return args


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    args = parse(argv, prog)
    return run_guarded(
        lambda: generate(args),
        verbose=args.verbose,
        config=args.config,
        overrides=args.overrides,
        interrupted="what was answered is kept; the same command goes on",
    )


def generate(args: argparse.Namespace) -> int:
    """Make the data set, or estimate it, and print its figures."""
    from tqdm import tqdm

    from kd.config.load import load_generation
    from kd.generation.budget import UNIT
    from kd.generation.card import format_card
    from kd.generation.data_set import DataSet
    from kd.units import duration

    config = load_generation(args.config, args.overrides)
    with DataSet(config, lambda text: print(text, flush=True)) as data_set:
        journal = data_set.journal
        if journal.count("answer") or journal.num_lost:
            lost = f"; {journal.num_lost} that a kill lost count at their bounds" if journal.num_lost else ""
            print(f"{journal.count('answer'):,} answers are there from an earlier start{lost}", flush=True)
        if journal.num_damaged:
            print(f"{journal.num_damaged:,} lines of {journal.path} are damaged and left out", flush=True)
        num = args.dry_run or (config.prompts.num if config.prompts.files is None else None)
        with tqdm(desc="prompts", total=num, disable=None, leave=False) as bar:

            def progress(num_ended: int, num_failed: int, spent: int) -> None:
                bar.set_postfix_str(f"spent {spent / UNIT:.4g}" + (f", failed {num_failed}" if num_failed else ""))
                bar.update(num_ended - bar.n)

            if args.dry_run is not None:
                found = data_set.estimate(args.dry_run, progress)
                bar.close()
                print(
                    f"sample     {found.num_sample:,} of {found.num_all:,} prompts, kept\n"
                    f"tokens     about {found.prompt_tokens:,.0f} sent, {found.completion_tokens:,.0f} generated\n"
                    f"cost       about {found.cost:.4g} (95 %: {found.low:.4g} to {found.high:.4g})\n"
                    f"time       about {duration(found.seconds)}"
                )
                return 0
            ended = data_set.ask(progress=progress)
        card = data_set.write(ended)
        print(format_card(card))
        if ended.reached:
            print("stopped    at spending.limit: raise it, and give the same command again")
        if ended.num_failed:
            print(f"failed     {ended.num_failed:,} prompts: give the same command again to ask them once more")
        print(f"card       {data_set.out / 'card.json'}")
        return 1 if ended.num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
