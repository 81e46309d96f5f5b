"""Judgement of one answer: strictly against the record, and beside it by BFCL's rules.

Strict: a call turn is right as a whole or it is wrong, and its values are the record's. By BFCL's rules values are
allowed in sets, arguments may be left out, and types are converted (kd/evaluation/bfcl_rules/). `bfcl` is its verdict
as its checker gives it; `allowed` is ours by the same rules, which fails a turn with a broken block or a key twice and
matches parallel calls in every way.
"""

from __future__ import annotations

from typing import Any

from kd.evaluation.bfcl_rules.answer import judge_calls
from kd.evaluation.bfcl_rules.reading import read_as_bfcl
from kd.evaluation.cases import Case
from kd.records.record import Record
from kd.rewards.caws_compliance import caws_compliance
from kd.rewards.caws_structure import caws_structure
from kd.toolcalls.compare import count_arguments, same_calls, same_names
from kd.toolcalls.grounding import find_carried, occurs
from kd.toolcalls.parsed import ParsedCalls
from kd.toolcalls.registry import ToolRegistry


def judge_case(case: Case, text: str, parsed: ParsedCalls) -> dict[str, Any]:
    """Judge `text` as the answer to `case`; `parsed` are the calls in it, or beside it.

    Returns plain JSON values: case, record, record_id, turn, kind, prompt {user, tools, results}, gold {calls, text,
    carried}, output, calls, problems, correct, and outcome, the verdicts that the metrics count:

        call         names, exact, json, schema, repaired_json, allowed, bfcl, missed (booleans); arguments {right,
                     given, wanted} (numbers); error (BFCL's name of it, or "")
        no_tool      over_called, bfcl (booleans); error
        integration  integrated (boolean); expected, found, given, right (numbers of values)
    """
    problems = list(parsed.problems)
    registry = ToolRegistry(case.tools)
    verdict = judge_calls(read_as_bfcl(text, parsed), case.entry)
    if case.kind == "call":
        misfits = [
            misfit for call in parsed.calls for misfit in registry.validate_call(call["name"], call["arguments"])
        ]
        problems += misfits
        outcome = {
            "names": parsed.valid and same_names(parsed.calls, case.gold_calls),
            "exact": parsed.valid and same_calls(parsed.calls, case.gold_calls),
            "json": parsed.valid,
            "schema": parsed.valid and not misfits,
            "repaired_json": parsed.valid_after_repair,
            "allowed": parsed.valid and verdict.fair,
            "bfcl": verdict.valid,
            "missed": not parsed.spans,
            "arguments": count_arguments(parsed.calls, case.gold_calls)._asdict(),
            "error": verdict.error,
        }
        correct = outcome["exact"]
    elif case.kind == "no_tool":
        outcome = {"over_called": bool(parsed.spans), "bfcl": verdict.valid, "error": verdict.error}
        correct = not outcome["over_called"]
    else:
        answer = parsed.text_outside  # a value inside a further call has not reached the user
        missing = [value for value in case.carried if not occurs(value, answer)]
        given = list(dict.fromkeys(value.text for value in find_carried(answer, case.results)))
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


def judge_caws(case: Case, text: str, parsed: ParsedCalls) -> dict[str, float]:
    """Score an answer by the case's working spec: caws_compliance and caws_structure (kd/rewards/), in [0, 1].

    Raises:
        CawsError: the case's `caws` is no context.
    """
    right = {"role": "assistant", "content": case.gold_text}
    record = Record(case.record_id, [*case.history, right], case.tools, caws=case.caws)
    rewards = {"caws_compliance": caws_compliance, "caws_structure": caws_structure}
    return {name: reward(record, len(case.history), text, parsed).value for name, reward in rewards.items()}
