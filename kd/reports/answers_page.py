"""Page of the student's own answers, runs/<name>/rollouts.html: each token coloured by what it weighed in the loss.

It is made from rollouts.jsonl (kd/training/process.py), one answer a line. One file, no script, nothing fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd.atomic_files import publish
from kd.reports.html import Html, el, join, page
from kd.reports.scores import format_words

NUM_STEPS = 24  # steps that are shown, evenly spaced, the first and the last among them
_GREEN, _RED, _BLUE = "46,160,67", "218,54,51", "56,118,219"
_STRONGEST = 0.55  # opacity of the largest weight of a prompt's answers


def write_answers(run_dir: Path, lines: Sequence[dict[str, Any]]) -> Path | None:
    """Write the page of a run's answers, replacing an older one whole; None where there are none.

    Raises:
        KeyError, TypeError: a line is not what kd/training/process.py writes.
    """
    if not lines:
        return None
    steps = sorted({line["step"] for line in lines})
    if len(steps) > NUM_STEPS:
        steps = [steps[round(at * (len(steps) - 1) / (NUM_STEPS - 1))] for at in range(NUM_STEPS)]
    body = [
        el("p", "Spanwise run", class_="eyebrow"),
        el("h1", f"{run_dir.name}: the student's own answers"),
        el(
            "p",
            f"{len(lines)} answers are kept, of {len({line['step'] for line in lines})} steps; {len(steps)} steps are "
            "shown. Tokens are ",
            _colour("made likelier", 1.0, 1.0),
            " or ",
            _colour("less likely", -1.0, 1.0),
            " by their answer's reward against the prompt's other answers, or ",
            el("span", "learned from the teacher", style=f"background:rgba({_BLUE},.2)"),
            " alone. Struck out is what a correction replaced, and underlined what it wrote in its place.",
            class_="soft",
        ),
        *(_draw_step(step, [line for line in lines if line["step"] == step]) for step in steps),
    ]
    out = run_dir / "rollouts.html"
    publish(out, page(f"{run_dir.name} · answers", *body).encode("utf-8", "backslashreplace"))
    return out


def _draw_step(step: int, lines: Sequence[dict[str, Any]]) -> Html:
    parts = [el("h2", f"Step {step}, stage {lines[0]['stage']}")]
    for prompt in dict.fromkeys(line["prompt"] for line in lines):
        parts.append(_draw_prompt([line for line in lines if line["prompt"] == prompt]))
    return join(*parts)


def _draw_prompt(lines: Sequence[dict[str, Any]]) -> Html:
    first = lines[0]
    strongest = max((abs(weight) for line in lines for weight in line["weights"]), default=0.0)
    return el(
        "div",
        el("div", el("span", f"{first['record']}, messages[{first['turn']}]"), class_="meta"),
        el("p", first["asked"]),
        el("p", "The record's answer:", class_="soft"),
        el("pre", first["wanted"]),
        *(_draw_answer(line, strongest) for line in lines),
        class_="card",
    )


def _draw_answer(line: dict[str, Any], strongest: float) -> Html:
    parts = ", ".join(f"{format_words(name)} {value:.2g}" for name, value in line["parts"].items())
    cut = "" if line["finished"] else ", cut at max_new_tokens"
    fix = line["correction"]
    kept = len(line["tokens"]) if fix is None else fix["kept"]
    rewarded = any(weight not in (0, 1) for weight in line["weights"])
    tokens = [
        _colour(token, weight, strongest, rewarded=rewarded) for token, weight in zip(line["tokens"], line["weights"])
    ]
    written = [*tokens[:kept], *([el("del", *tokens[kept:])] if tokens[kept:] else [])]
    corrected = [] if fix is None else [el("ins", fix["text"])]
    title = f"Reward {line['reward']:.3g} ({parts}), advantage {line['advantage']:+.3g}{cut}"
    if fix is not None:
        title += f"; corrected: {fix['kind']}"
    return join(el("p", title, class_="soft"), el("pre", *written, *corrected))


def _colour(text: str, weight: float, strongest: float, *, rewarded: bool = True) -> Html:
    if not weight or not strongest:
        return el("span", text)
    colour = _BLUE if not rewarded else _GREEN if weight > 0 else _RED
    opacity = 0.2 if not rewarded else _STRONGEST * min(abs(weight) / strongest, 1.0)
    return el("span", text, style=f"background:rgba({colour},{opacity:.2f})")
