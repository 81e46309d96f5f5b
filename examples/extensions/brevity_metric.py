"""A metric: the part of the answers, of every kind of turn, that have at most 200 characters."""

from kd.evaluation.metrics import METRICS, Metric


def brevity(cases):
    """Return a fraction in [0, 1] of the judged cases of a split, or None where there are none."""
    return sum(len(case["output"]) <= 200 for case in cases) / len(cases) if cases else None


METRICS.register("brevity", Metric("brief answers", brevity))
