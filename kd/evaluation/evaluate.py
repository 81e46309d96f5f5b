"""Tool-use evaluation of generated answers, in the manner of BFCL: a call is right as a whole or it is wrong.

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

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from kd.evaluation.answerers.answer import Answerer, Progress, Prompt
from kd.evaluation.answerers.local_model import EvaluationError
from kd.evaluation.cases import Case
from kd.evaluation.judge import judge_case, judge_caws
from kd.evaluation.metrics import summarise
from kd.hashing import hash_text


class Evaluation(NamedTuple):
    """Evaluation of one split.

    Attributes:
        metrics: the registered metrics, num_records, counts and extra, as `kd.evaluation.metrics.summarise` says.
        cases: one outcome a case, as `evaluate_cases` says.
    """

    metrics: dict[str, Any]
    cases: list[dict[str, Any]]


class Samples(NamedTuple):
    """Number of answers to each case, and the seed that they are drawn by where the answerer samples."""

    num: int = 1
    seed: int = 0

    def list_prompts(self, case: Case) -> list[Prompt]:
        """List a case's prompts; their seeds depend on this seed, the case and the number of the sample alone."""
        names = [json.dumps([self.seed, case.record, case.record_id, case.turn, at]) for at in range(self.num)]
        return [Prompt(case.history, case.tools, case.prompt_ids, int(hash_text(name)[:8], 16) >> 1) for name in names]


ONE = Samples()


def evaluate_cases(
    answerer: Answerer, cases: Sequence[Case], samples: Samples = ONE, *, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Have each case answered, and judge it.

    Returns one outcome a case and sample, of plain JSON values: those of `kd.evaluation.judge.judge_case`, sample (from
    0), num_tokens, own_calls of an endpoint, and finished (kd/evaluation/answerers/answer.py).
    """
    asked = [(case, at, prompt) for case in cases for at, prompt in enumerate(samples.list_prompts(case))]
    answers = answerer.answer([prompt for *_, prompt in asked], progress=progress)
    outcomes = []
    for (case, at, _), answer in zip(asked, answers, strict=True):
        outcome = judge_case(case, answer.text, answer.calls)
        outcome["problems"] += answer.problems
        if case.caws is not None:
            outcome["outcome"] |= judge_caws(case, answer.text, answer.calls)
        if answer.own_calls:
            outcome["own_calls"] = list(map(list, answer.own_calls))
        outcomes.append({**outcome, "sample": at, "num_tokens": answer.num_tokens, "finished": answer.finished})
    return outcomes


def merge(*parts: Sequence[dict[str, Any]]) -> Evaluation:
    """Join the outcomes of one split, however its cases were shared out, into the evaluation of the whole.

    Raises:
        EvaluationError: a case was judged twice (two ranks were given the same share), or there is none.
    """
    cases = sorted((outcome for part in parts for outcome in part), key=name_outcome)
    if not cases:
        raise EvaluationError("no outcomes to merge: every share was empty")
    for one, two in zip(cases, cases[1:]):
        if name_outcome(one) == name_outcome(two):
            raise EvaluationError(f"case {one['case']} ({one['record_id']}) was judged twice: shares must not overlap")
    return Evaluation(summarise(cases), cases)


def name_outcome(outcome: dict[str, Any]) -> tuple[int, int]:
    """Return what tells an outcome from the others of its split, and orders them: (case, sample)."""
    return outcome["case"], outcome.get("sample", 0)
