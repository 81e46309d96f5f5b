"""Comparison of models on the same records: each pair, metric by metric, and what is within noise.

Models are paired record by record, found by id. Files of several runs are joined into one evaluation, in which a model
is called FOLDER/MODEL.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from kd.errors import SpanwiseError
from kd.evaluation.intervals import Difference, Parts, find_difference
from kd.evaluation.metrics import find_metric, read_value
from kd.evaluation.shape import find_misfit

Evaluation = dict[str, dict[str, dict[str, Any]]]  # evaluation.json: model -> split -> metrics


class ComparisonError(SpanwiseError, ValueError):
    """Evaluations that cannot be compared."""


def compare_models(evaluation: Evaluation) -> dict[str, dict[tuple[str, str], dict[str, Difference]]]:
    """Compare each pair of models on each split: split -> (model, later model) -> metric -> their difference.

    Metrics that one of the two lacks are left out, and so are models of files older than `records`.

    Raises:
        ComparisonError: two models were asked different records.
    """
    splits = list(dict.fromkeys(split for scores in evaluation.values() for split in scores))
    found: dict[str, dict[tuple[str, str], dict[str, Difference]]] = {}
    for split in splits:
        models = [model for model, scores in evaluation.items() if "records" in scores.get(split, {})]
        for one, two in combinations(models, 2):
            pair = _pair(split, {model: evaluation[model][split]["records"] for model in (one, two)})
            found.setdefault(split, {})[one, two] = pair
    return found


def find_ties(evaluation: Evaluation, split: str, name: str) -> set[str]:
    """Find the models whose difference from the best on a split, in metric `name`, is within noise; without the best.

    Raises:
        ComparisonError: two models were asked different records.
    """
    values = {
        model: value
        for model, scores in evaluation.items()
        if "records" in scores.get(split, {}) and (value := read_value(scores[split], name)) is not None
    }
    metric = find_metric(name)
    if len(values) < 2 or metric is None:
        return set()
    best = (min if metric.lower_is_better else max)(values, key=lambda model: values[model])
    ties = set()
    for other in values.keys() - {best}:
        pair = _pair(split, {model: evaluation[model][split]["records"] for model in (best, other)})
        if name in pair and pair[name].within_noise:
            ties.add(other)
    return ties


def read_evaluations(files: Sequence[tuple[str, Path]]) -> Evaluation:
    """Read evaluation.json files, each under a name of its own, into one: models are called NAME/MODEL.

    Raises:
        ComparisonError: a file that cannot be read or is older than `records`, or files of other splits.
    """
    joined: Evaluation = {}
    splits: dict[str, set[str]] = {}
    for name, path in files:
        try:
            models = json.loads(path.read_text(encoding="utf-8"))
            old = [split for scores in models.values() for split in scores if "records" not in scores[split]]
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            raise ComparisonError(f"{path}: no evaluation.json of this project ({error}): name another file") from error
        if old or not models:
            raise ComparisonError(f"{path}: it has no results by record: evaluate again with this version")
        misfit = find_misfit(models)
        if misfit:
            raise ComparisonError(f"{path}: {misfit}: the file was changed, or is no evaluation.json: evaluate again")
        for model, scores in models.items():
            joined[f"{name}/{model}"] = scores
            splits[f"{name}/{model}"] = set(scores)
    first, *others = splits
    for model in others:
        if splits[model] != splits[first]:
            raise ComparisonError(
                f"{first} has the splits {', '.join(sorted(splits[first]))}, and {model} "
                f"{', '.join(sorted(splits[model]))}: evaluate all models on the same"
            )
    return joined


def _pair(split: str, records: dict[str, dict[str, Any]]) -> dict[str, Difference]:
    (one, left), (two, right) = records.items()
    order = _match(split, one, left, two, right)
    pair = {}
    for name, parts in left["parts"].items():
        theirs = right["parts"].get(name)
        if not parts or not theirs:
            continue
        ours, theirs = Parts(**parts), Parts(**theirs)
        if ours.by_record and theirs.by_record:
            theirs = Parts([theirs.sums[at] for at in order], [theirs.counts[at] for at in order])
        elif order != list(range(len(order))) or len(ours.sums) != len(theirs.sums):  # groups of other records
            continue
        metric = find_metric(name)
        found = find_difference(ours, theirs, fraction=metric is None or metric.fraction)
        if found is not None:
            pair[name] = found
    return pair


def _match(split: str, one: str, left: dict[str, Any], two: str, right: dict[str, Any]) -> list[int]:
    """Return the place in `right` of each record of `left`, found by id; ids may come again within one file."""
    if left["ids"] == right["ids"] and left["asked"] == right["asked"]:
        return list(range(len(left["ids"])))
    places = {name: at for at, name in enumerate(right["ids"])}
    for model, mine, other, theirs in ((one, left, two, right), (two, right, one, left)):
        there = {*theirs["ids"]}
        only = [name for name in mine["ids"] if name not in there]
        if only:
            raise ComparisonError(
                f"split {split}: {len(only)} of {len(mine['ids'])} records of {model} are not in {other}, such as "
                f"{only[0]!r}: models are compared on the same records; evaluate both on the same file"
            )
    order = [places[name] for name in left["ids"]]
    for name, asked, at in zip(left["ids"], left["asked"], order):
        if asked != right["asked"][at]:
            raise ComparisonError(
                f"split {split}: record {name!r} asks {one} and {two} for different things: evaluate both on the same "
                "file"
            )
    return order
