"""Tool-use evaluation by greedy generation, in the manner of BFCL: a call is right as a whole or it is wrong.

Every metric (kd/evaluation/metrics.py) is a fraction of turns (kd/evaluation/cases.py says which turns are asked):

    tool_name_accuracy  call turns whose calls name the record's tools, each as often
    exact_arguments     call turns whose calls equal the record's, names and arguments as JSON values, in any order
    json_validity       call turns with at least one call block, all of them valid as written
    schema_validity     call turns with valid blocks, every call naming an offered tool and fitting its schema
    over_calling        no-tool turns in which a call was attempted, well formed or not
    integration         turns after tool results whose answer holds every value the record's answer carries out of them

No partial credit: a turn with one broken block among its calls fails the first four. A fraction over no turns is null,
and `counts` says so. `extra` holds what helps to understand the others and is not comparable across corpora.

Nothing here knows of ranks. Each may run `evaluate_cases` on its share; outcomes are plain JSON values, `merge` joins
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from kd.errors import SpanwiseError
from kd.evaluation.cases import Case, build_cases
from kd.evaluation.judge import judge_case
from kd.evaluation.metrics import summarise
from kd.records.record import Record
from kd.rendering.call_syntax import find_syntax
from kd.rendering.stops import join_stop_ids
from kd.rollouts.decode import generate_greedily


class EvaluationError(SpanwiseError, ValueError):
    """Evaluation that cannot be made of what is there."""


class Evaluation(NamedTuple):
    """Evaluation of one split.

    Attributes:
        metrics: the registered metrics, num_records, counts and extra, as `kd.evaluation.metrics.summarise` says.
        cases: one outcome a case, as `evaluate_cases` says.
    """

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
    """Evaluate one model on one split; arguments as `evaluate_cases`.

    Raises:
        EvaluationError: no record has a turn to ask.
    """
    cases = build_cases(records, tokenizer)
    if not cases:
        raise EvaluationError(
            "no case to evaluate: the records hold no tool call, no tool result used, and no offered tool; give other "
            "records"
        )
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
    """Generate and judge each case; `model` is whole (never a ZeRO-3 shard), the rest as in
    `kd.rollouts.decode.generate_greedily`.

    An answer ends at a stop (kd/rendering/stops.py), after max_new_tokens, or where the model has no more positions; a
    prompt that leaves no position for an answer has an empty one.

    Returns one outcome a case, of plain JSON values: those of `kd.evaluation.judge.judge_case`, num_tokens, and
    finished (a stop came in time).

    Raises:
        EvaluationError: neither template, tokenizer nor model names an end-of-turn token.
    """
    stop_ids, positions = _stop_ids(model, tokenizer), count_positions(getattr(model, "config", None))
    reader = find_syntax(tokenizer)
    answers = generate_greedily(
        model,
        [case.prompt_ids for case in cases],
        stop_ids=stop_ids,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        vocab_size=len(tokenizer),
        max_length=positions,
        progress=progress,
    )
    outcomes = []
    for case, ids in zip(cases, answers):
        finished = bool(ids) and ids[-1] in stop_ids
        # Special tokens stay: <tool_call> is one in many vocabularies.
        text = tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=False)
        outcome = {**judge_case(case, text, reader), "num_tokens": len(ids), "finished": finished}
        if not ids:
            outcome["problems"].append(
                f"not asked: the prompt has {len(case.prompt_ids)} tokens, the model {positions} positions"
            )
        outcomes.append(outcome)
    return outcomes


def merge(*parts: Sequence[dict[str, Any]]) -> Evaluation:
    """Join the outcomes of one split, however its cases were shared out, into the evaluation of the whole.

    Raises:
        EvaluationError: a case was judged twice (two ranks were given the same share), or there is none.
    """
    cases = sorted((outcome for part in parts for outcome in part), key=lambda outcome: outcome["case"])
    if not cases:
        raise EvaluationError("no outcomes to merge: every share was empty")
    for one, two in zip(cases, cases[1:]):
        if one["case"] == two["case"]:
            raise EvaluationError(f"case {one['case']} ({one['record_id']}) was judged twice: shares must not overlap")
    return Evaluation(summarise(cases), cases)


def count_positions(model_config: PreTrainedConfig | None) -> int | None:
    """Return the tokens of prompt and answer that a model has positions for; None where its configuration sets none."""
    text = model_config.get_text_config() if model_config is not None else None
    return getattr(text, "max_position_embeddings", None)


def _stop_ids(model, tokenizer) -> list[int]:
    named = (getattr(getattr(model, part, None), "eos_token_id", None) for part in ("generation_config", "config"))
    ids = join_stop_ids(tokenizer, *named)
    if not ids:
        raise EvaluationError(
            "no end-of-turn token: set the tokenizer's eos_token to the token with which its chat template ends a turn"
        )
    return ids
