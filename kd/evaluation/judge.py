"""TODO docstring."""

from __future__ import annotations

from typing import Any

from kd.evaluation.cases import Case
from kd.toolcalls.grounding import carried_values, occurs
from kd.toolcalls.json_values import same_json
from kd.toolcalls.parse import parse_tool_calls
from kd.toolcalls.registry import ToolRegistry


def _judge(case: Case, text: str) -> dict[str, Any]:
    parsed = parse_tool_calls(text)
    problems = list(parsed.problems)
    registry = ToolRegistry(case.tools)
    if case.kind == "call":
        misfits = [
            misfit for call in parsed.calls for misfit in registry.validate_call(call["name"], call["arguments"])
        ]
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
