"""One step's gradients of a small model under DeepSpeed, by several ways of computing a head's loss, and by plain
autograd.

    python accumulation.py JOB.json     (one rank)

JOB.json: {"out": folder, "cases": [Case, ...]}. Rank 0 writes <out>/<name of the case>.pt: every parameter's gradient
as DeepSpeed would hand it to the optimizer, or the text of the error. tests/distributed/test_accumulation.py and
benchmarks/tiled_loss.py start it, two ranks each.

The step is the same for every number of micro-batches: SEQUENCES sequences, split over ranks and then over
micro-batches.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import DenseTeacher, Head, RowWeights, linear_distill_loss

SEQUENCES, TIME, H, HT, V, WORLD = 8, 8, 16, 12, 53, 2
CHUNKS = 4  # of a micro-batch's rows, where it has all its rows: whoever computes the head in pieces takes as many
TEMPERATURE = 2.0


class Case(NamedTuple):
    method: str  # "ours", "tiled" (DeepSpeed's TiledFusedLogitsLoss), "plain" (logits and F.cross_entropy)
    stage: int
    accumulation: int
    tied: bool
    # "distill": all terms over uneven rows, normalised over the step; "mean": a micro-batch's mean cross-entropy
    loss: str
    factor: float = 1.0  # on the loss, outside of the engine's forward

    @property
    def name(self) -> str:
        return "_".join(map(str, self))


class Step(NamedTuple):
    """All of one optimizer step, the same on every rank. A row is a position; `rows` are those that are trained."""

    tokens: Tensor  # [SEQUENCES, TIME]
    labels: Tensor  # [SEQUENCES, TIME]
    trained: Tensor  # [SEQUENCES, TIME] bool
    weights: Tensor  # [4, SEQUENCES, TIME] as RowWeights, for the loss of the step
    teacher_hidden: Tensor  # [SEQUENCES, TIME, HT]
    teacher_head: Tensor  # [V, HT]


def make_step(loss: str) -> Step:
    g = torch.Generator().manual_seed(5)
    tokens, labels = torch.randint(0, V, (2, SEQUENCES, TIME), generator=g)
    trained = torch.rand(SEQUENCES, TIME, generator=g) < 0.6
    trained[2] = False  # with four micro-batches a rank has one without any row
    trained[5] = True
    if loss == "mean":
        trained[:] = True
    weights = torch.rand(4, SEQUENCES, TIME, generator=g) / trained.sum()
    hidden, head = torch.randn(SEQUENCES, TIME, HT, generator=g), torch.randn(V, HT, generator=g)
    return Step(tokens, labels, trained, weights, hidden, head)


class Student(nn.Module):
    def __init__(self, case: Case):
        super().__init__()
        torch.manual_seed(11)
        self.case, self.step = case, make_step(case.loss)
        self.embedding = nn.Embedding(V, H)
        self.body = nn.Sequential(nn.Linear(H, 2 * H), nn.GELU(), nn.Linear(2 * H, H), nn.LayerNorm(H))
        self.head = nn.Linear(H, V, bias=not case.tied)
        if case.tied:
            self.head.weight = self.embedding.weight

    def forward(self, chosen: slice, divisor: float) -> Tensor:
        """The loss of these sequences; `divisor` is what DeepSpeed will divide its gradient by."""
        step, method = self.step, self.case.method
        hidden = self.body(self.embedding(step.tokens[chosen]))
        labels = step.labels[chosen]
        if method == "tiled":
            from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledFusedLogitsLoss

            assert self.case.loss == "mean"
            parameters = [p for p in (self.head.weight, self.head.bias) if p is not None]
            return TiledFusedLogitsLoss.apply(_tile_loss, self, hidden, labels, None, CHUNKS, parameters, "mean")
        rows = step.trained[chosen].flatten().nonzero()[:, 0]
        hidden, labels = hidden.flatten(0, 1).index_select(0, rows), labels.flatten()[rows]
        if self.case.loss == "mean":
            weights = RowWeights(truth=torch.full((len(rows),), 1 / len(rows)))
        else:
            weights = RowWeights(*(w[chosen].flatten()[rows] * divisor for w in step.weights))
        teacher_hidden = step.teacher_hidden[chosen].flatten(0, 1)[rows]
        if method == "plain":
            logits = self.head(hidden)
            return _plain_loss(logits, (teacher_hidden.to(logits) @ step.teacher_head.to(logits).T), labels, weights)
        has_teacher = weights.kd is not None
        teacher = DenseTeacher(teacher_hidden, Head(step.teacher_head)) if has_teacher else None
        chunk_rows = max(1, -(-len(rows) // CHUNKS))
        head = Head(self.head.weight, self.head.bias)
        return linear_distill_loss(
            hidden, head, teacher, labels, weights, temperature=TEMPERATURE, chunk_rows=chunk_rows
        ).loss


def _tile_loss(student: Student, hidden: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(student.head(hidden), labels)


def _plain_loss(z: Tensor, u: Tensor, labels: Tensor, weights: RowWeights) -> Tensor:
    nll = F.cross_entropy(z, labels, reduction="none")
    if weights.kd is None:
        return (weights.truth * nll).sum()
    log_q, log_p = F.log_softmax(z / TEMPERATURE, -1), F.log_softmax(u / TEMPERATURE, -1)
    kd = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1) * TEMPERATURE**2
    hard = F.cross_entropy(z, u.argmax(-1), reduction="none")
    return (weights.kd * kd + (weights.truth + weights.span) * nll + weights.hard * hard).sum()


def plain_gradients(tied: bool, loss: str, factor: float = 1.0) -> dict[str, Tensor]:
    """Every parameter's gradient over the whole step: one process, fp64, autograd alone."""
    student = Student(Case("plain", 0, 1, tied, loss)).double()
    (student(slice(None), 1.0) * factor).backward()
    return {name: p.grad for name, p in student.named_parameters()}


def relative_errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """By parameter, of its gradient's largest value."""
    assert found.keys() == truth.keys()
    return {name: float((found[name].double() - g).abs().max() / g.abs().max()) for name, g in truth.items()}


def run(case: Case) -> dict[str, Tensor]:
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    student = Student(case)
    count = SEQUENCES // WORLD // case.accumulation
    zero = {
        "stage": case.stage,
        "overlap_comm": False,
        "reduce_bucket_size": 10**6,
        "stage3_param_persistence_threshold": 0,
    }
    config = {
        "train_micro_batch_size_per_gpu": count,
        "gradient_accumulation_steps": case.accumulation,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=student, optimizer=torch.optim.SGD(student.parameters(), lr=0.0), config=config
    )
    for index in range(case.accumulation):
        first = dist.get_rank() * (SEQUENCES // WORLD) + index * count
        loss = engine(slice(first, first + count), float(WORLD)) * case.factor
        if case.loss == "mean":
            engine.backward(loss)  # divides by the accumulation
        else:
            engine.backward(loss, scale_wrt_gas=False)
        if index + 1 < case.accumulation:
            engine.step()
    grads = {name: safe_get_full_grad(p).clone() for name, p in student.named_parameters()}
    engine.step()
    engine.destroy()
    return grads


def main() -> None:
    from kd.distributed.start import start_distributed

    job = json.loads(Path(sys.argv[1]).read_text())
    rank, world = start_distributed()
    assert world == WORLD
    torch.set_num_threads(1)
    for case in (Case(*c) for c in job["cases"]):
        try:
            result = run(case)
        except (ValueError, RuntimeError, AssertionError) as error:
            result = f"{type(error).__name__}: {error}"
        if rank == 0:
            torch.save(result, Path(job["out"]) / f"{case.name}.pt")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
