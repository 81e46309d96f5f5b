"""Tool-use evaluation by greedy generation, in the manner of BFCL: a call is right as a whole or it is wrong.

Every fraction is over turns (kd/cases.py says which turns are asked):

    tool_name_accuracy  call turns whose calls name the record's tools, each as often
    exact_arguments     call turns whose calls equal the record's, names and arguments as JSON values, in any order
    json_validity       call turns with at least one call block, all of them valid as written
    schema_validity     call turns with valid blocks, every call naming an offered tool and fitting its schema
    over_calling        no-tool turns in which a call was attempted, well formed or not
    integration         turns after tool results whose answer holds every value the record's answer carries out of them

No partial credit: a turn with one broken block among its calls fails the first four. A fraction over no turns is null, and
`counts` says so. `extra` holds what helps to understand the others and is not comparable across corpora.

Nothing here knows of ranks. Each may run `evaluate_cases` on its share; outcomes are plain JSON values, `merge` joins them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kd.calls import parse_tool_calls, same_json
from kd.carried import carried_values, occurs
from kd.cases import Case, build_cases
from kd.data.records import Record
from kd.greedy import greedy
from kd.tools import ToolRegistry

METRICS = ("tool_name_accuracy", "exact_arguments", "json_validity", "schema_validity", "over_calling", "integration")
_OUTCOMES = dict(zip(METRICS, ("names", "exact", "json", "schema", "over_called", "integrated")))
_KINDS = {"over_calling": "no_tool", "integration": "integration"}  # the others are over call turns


class Evaluation(NamedTuple):
    """`metrics`: the keys of METRICS, num_records, counts, extra. `cases`: one outcome a case, as `evaluate_cases` says."""

    metrics: dict[str, Any]
    cases: list[dict[str, Any]]


def evaluate_model(
    model,
    tokenizer,
    records: Iterable[Record],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate one model on one split; arguments as `evaluate_cases`. Raises ValueError when no record has a turn to ask."""
    cases = build_cases(records, tokenizer)
    if not cases:
        raise ValueError("no case to evaluate: the records hold no tool call, no tool result used, and no offered tool")
    outcomes = evaluate_cases(
        model, tokenizer, cases, batch_size=batch_size, max_new_tokens=max_new_tokens, progress=progress
    )
    return merge(outcomes)


def evaluate_cases(
    model,
    tokenizer,
    cases: Sequence[Case],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Generate and judge each case; `model` is whole (never a ZeRO-3 shard), the rest as in `kd.greedy.greedy`.

    Returns one outcome a case, of plain JSON values: case, record, record_id, turn, kind, prompt {user, tools, results},
    gold {calls, text, carried}, output, num_tokens, finished (an end token came in time), calls, problems, correct, and
    outcome (the verdicts the metrics count).

    Raises:
        ValueError: neither the tokenizer nor the model's generation_config names an end-of-turn token.
    """
    stop_ids = _stop_ids(model, tokenizer)
    prompts = tokenizer([case.prompt for case in cases], add_special_tokens=False)["input_ids"] if cases else []
    rows = greedy(
        model, prompts, stop_ids=stop_ids, max_new_tokens=max_new_tokens, batch_size=batch_size,
        vocab_size=len(tokenizer), progress=progress
    )
    outcomes = []
    for case, ids in zip(cases, rows):
        finished = ids[-1] in stop_ids
        # Special tokens stay: <tool_call> is one in many vocabularies.
        text = tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=False)
        outcomes.append({**_judge(case, text), "num_tokens": len(ids), "finished": finished})
    return outcomes


def merge(*parts: Sequence[dict[str, Any]]) -> Evaluation:
    """Join the outcomes of one split, however its cases were shared out, into the evaluation of the whole.

    Raises:
        ValueError: a case was judged twice (two ranks were given the same share), or there is none.
    """
    cases = sorted((outcome for part in parts for outcome in part), key=lambda outcome: outcome["case"])
    if not cases:
        raise ValueError("no outcomes to merge: every share was empty")
    for one, two in zip(cases, cases[1:]):
        if one["case"] == two["case"]:
            raise ValueError(f"case {one['case']} ({one['record_id']}) was judged twice: shares must not overlap")
    return Evaluation(summarise(cases), cases)


def summarise(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of judged cases: fractions in [0, 1], or None where no turn of the kind was asked."""
    by_kind: dict[str, list[dict]] = {"call": [], "no_tool": [], "integration": []}
    for case in cases:
        by_kind[case["kind"]].append(case["outcome"])
    metrics: dict[str, Any] = {}
    for metric, verdict in _OUTCOMES.items():
        metrics[metric] = _fraction(by_kind[_KINDS.get(metric, "call")], verdict)
    metrics["num_records"] = len({case["record"] for case in cases})
    metrics["counts"] = {f"{kind}_turns": len(outcomes) for kind, outcomes in by_kind.items()}
    carried = [sum(outcome[key] for outcome in by_kind["integration"]) for key in ("expected", "found", "given", "right")]
    metrics["extra"] = {
        "repaired_json_validity": _fraction(by_kind["call"], "repaired_json"),
        "integration_f1": _f1(*carried),
        "unfinished": sum(not case["finished"] for case in cases) / len(cases) if cases else None,
        "mean_generated_tokens": sum(case["num_tokens"] for case in cases) / len(cases) if cases else None,
    }
    return metrics


def write_evaluation(path: str | Path, evaluation: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Write evaluation.json (model -> split -> metrics), whole or not at all."""
    _write_whole(path, json.dumps(evaluation, indent=2, allow_nan=False) + "\n")


def write_cases(path: str | Path, cases: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Write cases.jsonl from model -> split -> outcomes: a line a case, with each model's answer under `models`."""
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    shared = ("record_id", "turn", "kind", "prompt", "gold")
    own = ("output", "calls", "problems", "correct", "num_tokens", "finished")
    for model, splits in cases.items():
        for split, outcomes in splits.items():
            for outcome in outcomes:
                line = {"split": split, **{key: outcome[key] for key in shared}, "models": {}}
                line = lines.setdefault((split, outcome["case"]), line)
                line["models"][model] = {key: outcome[key] for key in own}
    _write_whole(path, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines.values()))


def format_table(evaluation: dict[str, dict[str, dict[str, Any]]]) -> str:
    """evaluation.json as lines for a terminal, fractions in percent, "-" where nothing was measured."""
    header = f"{'model':<16}{'split':<16}" + "".join(f"{metric:>20}" for metric in METRICS) + f"{'records':>9}"
    lines = [header]
    for model, splits in evaluation.items():
        for split, metrics in splits.items():
            cells = ("-" if metrics[key] is None else f"{100 * metrics[key]:.1f} %" for key in METRICS)
            lines.append(f"{model:<16}{split:<16}" + "".join(f"{cell:>20}" for cell in cells) + f"{metrics['num_records']:>9}")
    return "\n".join(lines)


def _judge(case: Case, text: str) -> dict[str, Any]:
    parsed = parse_tool_calls(text)
    problems = list(parsed.problems)
    registry = ToolRegistry(case.tools)
    if case.kind == "call":
        misfits = [misfit for call in parsed.calls for misfit in registry.validate_call(call["name"], call["arguments"])]
        problems += misfits
        outcome = {
            "names": parsed.valid and _same_names(parsed.calls, case.gold_calls),
            "exact": parsed.valid and _same_calls(parsed.calls, case.gold_calls),
            "json": parsed.valid,
            "schema": parsed.valid and not misfits,
            "repaired_json": parsed.valid_after_repair,
        }
        correct = outcome["exact"]
    elif case.kind == "no_tool":
        outcome = {"over_called": bool(parsed.spans)}
        correct = not outcome["over_called"]
    else:
        answer = parsed.text_outside  # a value inside a further call has not reached the user
        missing = [value for value in case.carried if not occurs(value, answer)]
        given = list(dict.fromkeys(value.text for value in carried_values(answer, case.results)))
        problems += [f"value {value!r} of the tool's result is missing" for value in missing]
        outcome = {
            "integrated": not missing,
            "expected": len(case.carried),
            "found": len(case.carried) - len(missing),
            "given": len(given),
            "right": sum(occurs(value, case.gold_text) for value in given),
        }
        correct = outcome["integrated"]
    return {
        "case": case.index,
        "record": case.record,
        "record_id": case.record_id,
        "turn": case.turn,
        "kind": case.kind,
        "prompt": {"user": case.user, "tools": registry.names, "results": case.results},
        "gold": {"calls": case.gold_calls, "text": case.gold_text, "carried": case.carried},
        "output": text,
        "calls": parsed.calls,
        "problems": problems,
        "correct": correct,
        "outcome": outcome,
    }


def _same_names(calls: list[dict], gold: list[dict]) -> bool:
    return sorted(call["name"] for call in calls) == sorted(call["name"] for call in gold)


def _same_calls(calls: list[dict], gold: list[dict]) -> bool:
    left = list(gold)
    for call in calls:
        match = next((at for at, other in enumerate(left) if same_json(call, other)), None)
        if match is None:
            return False
        del left[match]
    return not left


def _fraction(outcomes: list[dict], verdict: str) -> float | None:
    return sum(outcome[verdict] for outcome in outcomes) / len(outcomes) if outcomes else None


def _f1(expected: int, found: int, given: int, right: int) -> float | None:
    """Harmonic mean of recall found/expected and precision right/given, over the values of all turns together."""
    if not expected:
        return None
    recall, precision = found / expected, right / given if given else 0.0
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def _stop_ids(model, tokenizer) -> set[int]:
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(named if isinstance(named, (list, tuple)) else [named])} - {None}
    if not ids:
        raise ValueError("no end-of-turn token: set the tokenizer's eos_token to the one its chat template ends a turn with")
    return ids


def _write_whole(path: str | Path, text: str) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".tmp")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a crash could leave the new name on empty content
    os.replace(part, path)
