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

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from kd.evaluation.answerers.answer import Answerer, Progress, Prompt
from kd.evaluation.answerers.local_model import EvaluationError
from kd.evaluation.cases import Case, build_cases
from kd.evaluation.judge import judge_case
from kd.evaluation.metrics import summarise
from kd.records.record import Record


class Evaluation(NamedTuple):
    """Evaluation of one split.

    Attributes:
        metrics: the registered metrics, num_records, counts and extra, as `kd.evaluation.metrics.summarise` says.
        cases: one outcome a case, as `evaluate_cases` says.
    """

    metrics: dict[str, Any]
    cases: list[dict[str, Any]]


def evaluate_model(
    answerer: Answerer, records: Iterable[Record], tokenizer=None, *, progress: Progress | None = None
) -> Evaluation:
    """Evaluate one answerer on one split; `tokenizer` is the local model's (kd.evaluation.cases.build_cases).

    Raises:
        EvaluationError: no record has a turn to ask.
    """
    cases = build_cases(records, tokenizer)
    if not cases:
        raise EvaluationError(
            "no case to evaluate: the records hold no tool call, no tool result used, and no offered tool; give other "
            "records"
        )
    return merge(evaluate_cases(answerer, cases, progress=progress))


def evaluate_cases(
    answerer: Answerer, cases: Sequence[Case], *, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Have each case answered, and judge it.

    Returns one outcome a case, of plain JSON values: those of `kd.evaluation.judge.judge_case`, num_tokens, and
    finished (kd/evaluation/answerers/answer.py).
    """
    answers = answerer.answer([Prompt(case.history, case.tools, case.prompt_ids) for case in cases], progress=progress)
    outcomes = []
    for case, answer in zip(cases, answers, strict=True):
        outcome = judge_case(case, answer.text, answer.calls)
        outcome["problems"] += answer.problems
        outcomes.append({**outcome, "num_tokens": answer.num_tokens, "finished": answer.finished})
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
