"""Evaluation by BFCL: its entries are asked, and its checker judges the calls, with our own verdict beside it.

single-turn  one answer; ours is by the same rules (kd/evaluation/bfcl_rules/), fails a turn with a broken block or a
             key twice, matches parallel calls in every way, and has a broken attempt for one
multi-turn   each turn until no call is made, on its state machines; theirs compares the states and the results that
             calls leave, ours the calls (kd/evaluation/conversations/judge.py), so it refuses another way to the
             same state
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd.evaluation.answerers.answer import Answer, Answerer, Progress, Prompt
from kd.evaluation.bfcl.package import Entry, Package
from kd.evaluation.bfcl.scores import BFCL
from kd.evaluation.bfcl_rules.answer import judge_calls
from kd.evaluation.bfcl_rules.entry import read_entry
from kd.evaluation.bfcl_rules.reading import read_as_bfcl
from kd.evaluation.conversations.dialogue import Call, Dialogue, Turn, run_dialogues
from kd.evaluation.conversations.judge import describe_steps, join_answers, judge_turns
from kd.records.formats.bfcl import read_python_call
from kd.records.formats.schemas import from_bfcl


def read_entries(package: Package, categories: Sequence[str], most_entries: int | None = None) -> list[Entry]:
    """Read the entries of categories (kd/evaluation/bfcl/categories.py), of each the first `most_entries`."""
    return [entry for name in categories for entry in package.read_entries(name)[:most_entries]]


def evaluate_entries(
    answerer: Answerer,
    package: Package,
    entries: Sequence[Entry],
    share: tuple[int, int] = (0, 1),
    *,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Ask entries, and judge the answers.

    Args:
        share: (rank, world size): this rank's share of the entries is asked.

    Returns one outcome an entry, of plain JSON values, as `kd.evaluation.evaluate.evaluate_cases` does; `outcome` has
    category, bfcl (its checker's verdict), ours, error (its name of the error, or ""), and judge, its version; in
    multi-turn also what `kd.evaluation.conversations.judge.judge_turns` says, and steps.

    Raises:
        DataError: the chat template refuses an entry.
    """
    mine = list(enumerate(entries))[share[0] :: share[1]]
    single = [(at, entry) for at, entry in mine if not _has_turns(entry)]
    several = [(at, entry) for at, entry in mine if _has_turns(entry)]
    done = [0, 0]

    def show(part: int, number: int) -> None:
        done[part] = number
        if progress is not None:
            progress(sum(done), len(mine))

    prompts = [Prompt(entry.asked["question"][0], _declare(entry.asked["function"])) for _, entry in single]
    answers = answerer.answer(prompts, progress=lambda number, _: show(0, number)) if prompts else []
    found = [(at, _judge(package, entry, answer)) for (at, entry), answer in zip(single, answers, strict=True)]
    with package.keep_states():
        dialogues = [_open(package, entry) for _, entry in several]
        run_dialogues(answerer, dialogues, progress=lambda number, _: show(1, number))
    found += [
        (at, _judge_dialogue(package, entry, dialogue))
        for (at, entry), dialogue in zip(several, dialogues, strict=True)
    ]
    judge = f"bfcl-eval {package.version}"
    for _, outcome in found:
        outcome["outcome"]["judge"] = judge
    return [{"case": at, "record": at, **outcome} for at, outcome in sorted(found, key=lambda pair: pair[0])]


def _has_turns(entry: Entry) -> bool:
    return entry.category.startswith("multi_turn")


def _rename(name: str) -> str:
    return name.replace(".", "_")  # endpoints take no dots, and the checker is told so


def _declare(functions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Declare functions as tools of the chat format, with JSON Schema's type names."""
    return [
        {
            "type": "function",
            "function": {**one, "name": _rename(one["name"]), "parameters": from_bfcl(one["parameters"])},
        }
        for one in functions
    ]


def _judge(package: Package, entry: Entry, answer: Answer) -> dict[str, Any]:
    calls = read_as_bfcl(answer.text, answer.calls)
    theirs = package.check_calls(entry, calls)
    functions = [{**one, "name": _rename(one["name"])} for one in entry.judged["function"]]
    truth = [{_rename(name): allowed for name, allowed in one.items()} for one in entry.truth or []]
    verdict = judge_calls(calls, read_entry(entry.id, functions, truth))
    ours = verdict.fair and (not answer.calls.spans if "irrelevance" in entry.category else answer.calls.valid)
    wanted = [{"name": name, "arguments": allowed} for one in truth for name, allowed in one.items()]
    outcome = {"category": entry.category, BFCL: theirs.valid, "ours": ours, "error": theirs.error}
    joined = {
        "output": answer.text,
        "calls": answer.calls.calls,
        "problems": [*answer.calls.problems, *answer.problems, *([verdict.words] if verdict.words else [])],
        "sample": 0,
        "num_tokens": answer.num_tokens,
        "finished": answer.finished,
    }
    return _report(entry, wanted, joined, outcome)


def _open(package: Package, entry: Entry) -> Dialogue:
    """Open the dialogue of a multi-turn entry: functions that come later are announced in a turn of their own."""
    functions = list(entry.asked["function"])
    later = entry.asked.get("missed_function", {})
    turns = []
    for at, messages in enumerate(entry.asked["question"]):
        if str(at) in later:
            functions = [*functions, *later[str(at)]]
            messages = [{"role": "user", "content": package.more_functions}]
        turns.append(Turn(messages, _declare(functions)))
    return Dialogue(entry.id, turns, lambda calls: package.execute(entry, calls), most_steps=package.most_steps)


def _judge_dialogue(package: Package, entry: Entry, dialogue: Dialogue) -> dict[str, Any]:
    theirs = package.check_turns(entry, [[step.calls for step in turn if step.calls] for turn in dialogue.steps])
    wanted = _read_truth(entry)
    verdict = judge_turns(dialogue.steps, wanted)
    joined = join_answers(dialogue)
    outcome = {
        "category": entry.category,
        BFCL: theirs.valid,
        "ours": verdict["right"],
        "error": theirs.error,
        **verdict,
        "steps": describe_steps(dialogue.steps),
    }
    return _report(entry, [call for turn in wanted for call in turn], joined, outcome)


def _read_truth(entry: Entry) -> list[list[Call]]:
    functions = [
        *entry.asked["function"],
        *(f for more in entry.asked.get("missed_function", {}).values() for f in more),
    ]
    schemas = {function["name"]: function["parameters"] for function in functions}
    return [[read_python_call(text, schemas, entry.id) for text in turn] for turn in entry.truth or []]


def _report(entry: Entry, wanted: list[Call], joined: dict[str, Any], outcome: dict[str, Any]) -> dict[str, Any]:
    said = [message["content"] for turn in entry.asked["question"] for message in turn if message["role"] == "user"]
    return {
        "record_id": entry.id,
        "turn": 0,
        "kind": BFCL,
        "prompt": {
            "user": said[0] if said else "",
            "tools": [_rename(function["name"]) for function in entry.asked["function"]],
            "results": [],
        },
        "gold": {"calls": wanted, "text": "", "carried": []},
        **joined,
        "correct": outcome[BFCL],
        "outcome": outcome,
    }
