"""What `launch/evaluate.py` asks beside single turns: whole conversations, and BFCL."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Mapping, Sequence
from functools import partial

from kd.evaluation.bfcl.categories import BfclError, choose_categories
from kd.evaluation.bfcl.evaluate import evaluate_entries, read_entries
from kd.evaluation.bfcl.package import Package
from kd.evaluation.bfcl.scores import BFCL
from kd.evaluation.conversations.evaluate import evaluate_conversations
from kd.evaluation.conversations.results import SIMULATOR_SECONDS, load_simulator
from kd.evaluation.together import Further, find_place
from kd.records.record import Record


def add_further(parser: argparse.ArgumentParser) -> None:
    """Add --conversations, --simulator and its timeout, --bfcl and --bfcl-entries."""
    parser.add_argument(
        "--conversations",
        action="store_true",
        help="hold each record's conversation too: the model's own calls get the record's results",
    )
    parser.add_argument(
        "--simulator", metavar="MODULE:FUNCTION", help="of yours, which answers the calls of --conversations"
    )
    parser.add_argument(
        "--simulator-timeout",
        type=float,
        metavar="S",
        help=f"seconds of one call of the simulator; {SIMULATOR_SECONDS:g} by default",
    )
    parser.add_argument(
        "--bfcl",
        nargs="+",
        default=[],
        metavar="CATEGORY",
        help="categories or collections of BFCL, judged by its own package (pip install 'spanwise[bfcl]')",
    )
    parser.add_argument("--bfcl-entries", type=int, metavar="N", help="the first N of each category; all by default")


def check_further(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check these options; args.bfcl becomes the list of its categories."""
    if args.compare and (args.bfcl or args.conversations):
        parser.error("--compare: it takes evaluations that were written before, and no --bfcl or --conversations")
    if args.conversations and not args.data:
        parser.error("--conversations: the records of --data are held; give some")
    if args.simulator and not args.conversations:
        parser.error("--simulator: it answers the calls of --conversations; give that too")
    if args.simulator_timeout is None:
        args.simulator_timeout = SIMULATOR_SECONDS
    elif not args.simulator or not 0 < args.simulator_timeout <= threading.TIMEOUT_MAX:
        parser.error("--simulator-timeout: seconds above 0, with --simulator")
    if args.bfcl_entries is not None and (args.bfcl_entries < 1 or not args.bfcl):
        parser.error("--bfcl-entries: 1 or more, with --bfcl")
    if (args.bfcl or args.conversations) and args.temperature is not None:
        parser.error("--temperature: conversations and BFCL are asked for greedy answers; sample without them")
    if args.bfcl and any(split == BFCL for split, _ in args.data):
        parser.error(f"--data: {BFCL} is the split of --bfcl: choose another name")
    try:
        args.bfcl = choose_categories(args.bfcl)
    except BfclError as error:
        parser.error(str(error))


def prepare_further(args: argparse.Namespace, records: Mapping[str, Sequence[Record]]) -> dict[str, Further]:
    """Prepare what is asked beside the turns of each split, this rank's share of it.

    records: by split.

    Raises:
        BfclError, SimulatorError: the package or the simulator cannot be used.
    """
    further: dict[str, Further] = {}
    if args.conversations:
        simulate = load_simulator(args.simulator) if args.simulator else None
        for split, own in records.items():
            further[split] = partial(
                evaluate_conversations,
                records=own,
                simulate=simulate,
                seconds=args.simulator_timeout,
                share=find_place(),
            )
    if args.bfcl:
        package = Package()
        entries = read_entries(package, args.bfcl, args.bfcl_entries)
        further[BFCL] = partial(evaluate_entries, package=package, entries=entries, share=find_place())
    return further
