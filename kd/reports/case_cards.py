"""Held-out cases side by side: the choice of a dozen, and each as a card with its differences marked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from kd.reports.html import Html, el, join, mark_diff
from kd.toolcalls.grounding import occurs
from kd.toolcalls.json_values import same_json
from kd.toolcalls.reader import CALL_OPEN

KINDS = {"call": "tool call", "integration": "answer from a tool's result", "no_tool": "no tool fits"}


def choose(cases: Sequence[dict], models: Sequence[str], count: int) -> tuple[list[dict], list[tuple[str, int, int]]]:
    """Choose the cases to show: (cases, [(verdict, number shown, number in all)]), the same for the same evaluation.

    Cases are grouped by split, kind and who is right; the groups take turns giving one, so that rare verdicts are seen
    beside common ones. Within a group the order is that of a hash of record and turn: not the file's, and nobody's
    choice.
    """
    groups: dict[tuple, list[dict]] = {}
    cases = [case for case in cases if case["kind"] in KINDS]  # a whole conversation is no turn to look at
    for case in sorted(cases, key=_lot):
        verdict = tuple(case["models"][model]["correct"] for model in models)
        groups.setdefault((case["kind"], verdict, case["split"]), []).append(case)
    splits = sorted({case["split"] for case in cases})
    # Everybody right first, then the mistakes; splits alternate from one turn to the next.
    turns = sorted(
        {key[:2] for key in groups},
        key=lambda turn: (tuple(not right for right in turn[1]), list(KINDS).index(turn[0])),
    )
    chosen: list[dict] = []
    shift = 0
    while any(groups.values()) and len(chosen) < count:
        for number, turn in enumerate(turns):
            order = [splits[(number + shift + step) % len(splits)] for step in range(len(splits))]
            group = next((groups[(*turn, split)] for split in order if groups.get((*turn, split))), None)
            if group and len(chosen) < count:
                chosen.append(group.pop(0))
        shift += 1
    tally: dict[tuple, list[int]] = {}
    for case in cases:
        verdict = tuple(case["models"][model]["correct"] for model in models)
        row = tally.setdefault(verdict, [0, 0])
        row[0] += any(case is one for one in chosen)
        row[1] += 1
    order = sorted(tally, reverse=True)
    return chosen, [(_verdict_text(models, verdict), tally[verdict][0], tally[verdict][1]) for verdict in order]


def draw_card(case: dict[str, Any], models: Sequence[str]) -> Html:
    """Draw one case: the prompt, the record's answer, and each model's, marked where it departs from the record's."""
    gold, prompt = case["gold"], case["prompt"]
    meta = el(
        "div",
        el("span", case["split"]),
        el("span", KINDS[case["kind"]]),
        el("span", f"{case['record_id']}, turn {case['turn']}"),
        class_="meta",
    )
    tools = el("div", *(el("span", name, class_="chip") for name in prompt["tools"]), title="tools offered")
    results = [el("pre", result) for result in prompt["results"]]
    results = [el("h3", "What the tools returned"), *results] if results else []
    sides = [el("div", el("h4", "Record"), el("pre", _gold(gold)), class_="side")]
    sides += [_side(model, case["models"][model], gold) for model in models]
    return el(
        "article", meta, el("p", prompt["user"], class_="user"), tools, *results, el("div", *sides, class_="sides")
    )


def _side(model: str, answer: dict[str, Any], gold: dict[str, Any]) -> Html:
    right = answer["correct"]
    badge = el("span", "right" if right else "wrong", class_=f"badge {'right' if right else 'wrong'}")
    written = "\n".join(
        [answer["output"], *(f"{name}\n  {text}" for name, text in answer.get("own_calls", ()))]
    ).strip()
    is_whole = bool(answer["calls"]) and _is_whole(answer)
    shown = format_calls(_put_in_order(answer["calls"], gold["calls"])) if is_whole else written
    notes = list(answer["problems"]) if not right else []
    if not answer["finished"]:
        notes.append(f"cut after {answer['num_tokens']} tokens, before the end of the turn")
    if not shown:
        body = el("pre", el("span", "(nothing)", class_="soft"))
    elif bool(gold["calls"]) != _has_called(answer):  # a call for an answer, or the reverse: no word is the same
        body = el("pre", el("ins", shown))
    elif is_whole or not gold["calls"]:
        body = el("pre", mark_diff(shown, format_calls(gold["calls"]) if gold["calls"] else gold["text"]))
    elif CALL_OPEN in shown:
        wanted = "".join(f"{CALL_OPEN}{json.dumps(call, ensure_ascii=False)}</tool_call>" for call in gold["calls"])
        body = el("pre", mark_diff(shown, wanted))
    else:  # a broken call in another syntax, in which the record's is not at hand
        body = el("pre", shown)
    why = el("ul", *(el("li", note) for note in notes), class_="why") if notes else None
    return el("div", el("h4", model.replace("_", " ").capitalize(), badge), body, why, class_="side")


def _has_called(answer: dict[str, Any]) -> bool:
    """Tell whether a call was made or tried, in whatever syntax."""
    outcome = answer.get("outcome", {})
    tried = outcome.get("over_called") or outcome.get("missed") is False or CALL_OPEN in answer["output"]
    return bool(answer["calls"] or answer.get("own_calls") or tried)


def _is_whole(answer: dict[str, Any]) -> bool:
    """Tell whether every call of an answer was read as it is written."""
    num_blocks = max(answer["output"].count(CALL_OPEN), len(answer.get("own_calls", ())))
    return answer.get("outcome", {}).get("json", True) and num_blocks <= len(answer["calls"])


def _gold(gold: dict[str, Any]) -> Html:
    if gold["calls"]:
        return join(format_calls(gold["calls"]))
    text, out, done = gold["text"], [], 0
    for value in gold["carried"]:  # in the order of the answer, first occurrence of each
        at = text.find(value, done)
        if at >= 0 and occurs(value, text):
            out += [join(text[done:at]), el("mark", value)]
            done = at + len(value)
    return join(*out, text[done:])


def format_calls(calls: Sequence[dict]) -> str:
    """Write calls for reading: the name on a line, each argument below it as JSON."""
    lines = []
    for call in calls:
        lines.append(call["name"])
        lines += [f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in call["arguments"].items()]
    return "\n".join(lines)


def _put_in_order(calls: Sequence[dict], gold: Sequence[dict]) -> list[dict]:
    """Put calls in the record's order and spelling where JSON sees no difference, so that a diff shows real ones."""
    left, out = list(calls), []
    for wanted in gold:
        same = [call for call in left if same_json(call, wanted)] or [
            call for call in left if call["name"] == wanted["name"]
        ]
        if same:
            left.remove(same[0])
            out.append(_spell_as(same[0], wanted))
    return out + left


def _spell_as(value: Any, gold: Any) -> Any:
    if same_json(value, gold):
        return gold
    if isinstance(value, dict) and isinstance(gold, dict):
        keys = [key for key in gold if key in value] + [key for key in value if key not in gold]
        return {key: _spell_as(value[key], gold.get(key)) for key in keys}
    return value


def _lot(case: dict) -> str:
    return hashlib.sha256(f"{case['split']}/{case['record_id']}/{case['turn']}".encode()).hexdigest()


def _verdict_text(models: Sequence[str], verdict: tuple[bool, ...]) -> str:
    if len(set(verdict)) == 1 and len(verdict) > 1:
        return ("all" if len(verdict) > 2 else "both") + (" right" if verdict[0] else " wrong")
    return ", ".join(f"{model} {'right' if right else 'wrong'}" for model, right in zip(models, verdict))
