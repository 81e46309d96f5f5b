"""Angle between the gradients of a sparse and of the dense teacher, over all of a student's parameters.

Two places to measure it, both on a CPU in fp32, for the distillation term alone (forward KL):

    demo        the demo's teacher (V = 612) and a student checkpoint, on records of the demo corpus
    language    V = 151,936: a made-up teacher whose distributions have a language model's profile, Zipf tails and a
                mean entropy of 2 to 3 nats, and a small student that has learned from it for some steps

`sampled` and `topk` targets go through the bytes of a cache, as in a run. "renormalised" is the top of the distribution
divided by its sum, without the tail: other trainers store it, and no configuration of this one offers it.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kd.teacher.cache.reader import CacheReader  # noqa: E402
from kd.teacher.cache.spec import CacheSpec, Entry  # noqa: E402
from kd.teacher.cache.writer import CacheWriter  # noqa: E402
from kernels import (  # noqa: E402
    DenseTeacher,
    Head,
    RowWeights,
    SparseTeacher,
    linear_distill_loss,
    sparse_teacher,
    teacher_sample,
    teacher_topk,
)

NUM_DRAWS = (50, 100)
Teacher = DenseTeacher | SparseTeacher


class Rows(NamedTuple):
    """N rows of a batch: inputs of the student's trunk, and the teacher's hidden states [N, Ht] with its head."""

    inputs: object
    teacher: DenseTeacher


class Student(NamedTuple):
    """`hidden(inputs)` is [N, H]; `head()` the Head; parameters are those of both."""

    hidden: Callable[[object], Tensor]
    head: Callable[[], Head]
    parameters: list[Tensor]


def seeds_of(start: int, count: int) -> Tensor:
    """Make seeds [count] int64 of rows start, start + 1, ..., spread over 64 bits by a multiplication that wraps."""
    return (torch.arange(start, start + count) + 1) * (0x9E3779B97F4A7C15 - (1 << 64))


def through_cache(targets, vocab: int, temperature: float) -> SparseTeacher:
    """Write `targets` to a cache and read them back, as a run does."""
    sampled = hasattr(targets, "counts")
    spec = CacheSpec(
        "sampled" if sampled else "topk",
        vocab,
        (temperature,),
        targets.num_draws if sampled else None,
        None if sampled else targets.ids.shape[1],
        "16bit",
    )
    key, digest = bytes(16), bytes(8)
    with tempfile.TemporaryDirectory() as folder:
        writer = CacheWriter(Path(folder), spec, {"teacher": "benchmark"})
        writer.write_shard(0, [Entry(key, digest, targets)])
        writer.finish(1, [])
        return CacheReader(Path(folder)).read([key], [digest], [len(targets.argmax)], temperature)


def renormalise(teacher: DenseTeacher, k: int, vocab: int, temperature: float) -> SparseTeacher:
    """Keep K tokens, their probabilities divided by their sum."""
    targets = sparse_teacher(teacher_topk(*teacher, k, (temperature,), vocab_size=vocab), temperature)
    return targets._replace(
        probs=targets.probs / targets.probs.sum(-1, keepdim=True), log_tail=torch.full_like(targets.log_tail, -math.inf)
    )


def list_targets(vocab: int, temperature: float) -> dict[str, Callable[[DenseTeacher, int], Teacher]]:
    """List makers of targets by name; each takes a dense teacher's rows and the number of the first in the batch."""

    def sampled(draws: int):
        def make(teacher: DenseTeacher, start: int) -> SparseTeacher:
            seeds = seeds_of(start, len(teacher.hidden))
            return through_cache(
                teacher_sample(*teacher, draws, (temperature,), seeds, vocab_size=vocab), vocab, temperature
            )

        return make

    def kept(k: int):
        return lambda teacher, start: through_cache(
            teacher_topk(*teacher, k, (temperature,), vocab_size=vocab), vocab, temperature
        )

    def without_tail(k: int):
        return lambda teacher, start: renormalise(teacher, k, vocab, temperature)

    return {
        "dense": lambda teacher, start: teacher,
        **{f"sampled, {draws} draws": sampled(draws) for draws in NUM_DRAWS},
        "topk 12 with tail": kept(12),
        "topk 50 with tail": kept(50),
        "topk 12 renormalised": without_tail(12),
        "topk 50 renormalised": without_tail(50),
    }


def gradient(
    student: Student, batch: list[Rows], make: Callable[[DenseTeacher, int], Teacher], vocab: int, temperature: float
) -> tuple[Tensor, dict]:
    """Compute the gradient [P] of the batch's mean divergence over all parameters, and facts of the targets."""
    count = sum(len(rows.teacher.hidden) for rows in batch)
    for p in student.parameters:
        p.grad = None
    start, distinct, entropy = 0, 0, 0.0
    for rows in batch:
        targets = make(rows.teacher, start)
        hidden = student.hidden(rows.inputs)
        weights = RowWeights(kd=torch.full((len(hidden),), 1 / count))
        out = linear_distill_loss(
            hidden,
            student.head(),
            targets,
            torch.full((len(hidden),), -100),
            weights,
            temperature=temperature,
            vocab_size=vocab,
        )
        out.loss.backward()
        start, entropy = start + len(hidden), entropy + out.teacher_entropy.sum().item()
        if isinstance(targets, SparseTeacher):
            distinct += int((targets.probs > 0).sum())
    found = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in student.parameters]
    )
    return found, {"rows": count, "entropy": entropy / count, "tokens_a_row": distinct / count or None}


def degrees(a: Tensor, b: Tensor) -> float:
    """Return the angle between two vectors, computed in fp64."""
    a, b = a.double(), b.double()
    return math.degrees(math.acos(min(1.0, float(a @ b / (a.norm() * b.norm())))))


def angles(student: Student, batch: list[Rows], vocab: int, temperature: float, **facts) -> Iterator[dict]:
    """Yield a line for each kind of targets: its angle to the dense gradient in degrees, and the ratio of norms."""
    dense = None
    for name, make in list_targets(vocab, temperature).items():
        found, about = gradient(student, batch, make, vocab, temperature)
        dense = found if dense is None else dense
        yield {
            **facts,
            "targets": name,
            "temperature": temperature,
            "degrees": degrees(found, dense),
            "norm_ratio": float(found.norm() / dense.norm()),
            **about,
        }


def demo_batch(num_rows: int, teacher, tokenizer, student_model) -> tuple[Student, list[Rows]]:
    """Prepare the demo's models over held-in records of the demo corpus, `num_rows` rows or more."""
    from kd.batching.micro_batch import collate
    from kd.models.hidden_states import hidden_rows
    from kd.models.lm_head import head_of, head_scaling
    from kd.rendering.encode import encode
    from kd.sources.demo import corpus as demo

    scaling, batch, have = head_scaling(teacher.config), [], 0
    head = Head(teacher.get_output_embeddings().weight.detach(), None, scaling.softcap, scaling.scale)
    records = demo.records("train", 10 * num_rows, seed=1337)
    while have < num_rows:
        micro = collate([encode(r, tokenizer) for r in itertools.islice(records, 8)], tokenizer.pad_token_id or 0)
        with torch.no_grad():
            batch.append(Rows(micro, DenseTeacher(hidden_rows(teacher, micro), head)))
        have += len(micro.rows)
    return Student(
        lambda micro: hidden_rows(student_model, micro),
        lambda: head_of(student_model),
        list(student_model.parameters()),
    ), batch


def demo_angles(students: dict[str, Path], num_rows: int = 4096) -> Iterator[dict]:
    """Yield the angles of the demo's students: a checkpoint's name, with its step -> its folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ROOT / "configs" / "demo_teacher"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, path in students.items():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        student, batch = demo_batch(num_rows, teacher, tokenizer, model)
        for temperature in (1.0, 2.0):
            yield from angles(student, batch, len(tokenizer), temperature, place="demo", checkpoint=name)


class LanguageTeacher:
    """Distributions like a language model's, of contexts that are 32 random numbers.

    logits = hidden W^T + b with b = -log(rank + 3.7), Zipf's law as Mandelbrot has it, and hidden of a length that
    varies from row to row: some rows are all but certain, some have thousands of candidates.
    """

    CONTEXT, WIDTH = 32, 64

    def __init__(self, vocab: int, seed: int = 0):
        make = torch.Generator().manual_seed(seed)
        bias = torch.empty(vocab)
        bias[torch.randperm(vocab, generator=make)] = -torch.log(torch.arange(vocab) + 3.7)
        self.head = Head(torch.randn(vocab, self.WIDTH, generator=make), bias)
        self._direction = torch.randn(self.CONTEXT, self.WIDTH, generator=make) * 2 / self.CONTEXT**0.5
        self._sureness = torch.randn(self.CONTEXT, generator=make) / self.CONTEXT**0.5

    def rows(self, count: int, seed: int) -> Rows:
        context = torch.randn(count, self.CONTEXT, generator=torch.Generator().manual_seed(seed))
        hidden = torch.nn.functional.normalize(torch.tanh(context @ self._direction), dim=-1)
        return Rows(
            context, DenseTeacher(hidden * torch.exp(1.85 + 0.55 * (context @ self._sureness))[:, None], self.head)
        )


def language_angles(
    vocab: int = 151_936, num_rows: int = 4096, steps: tuple[int, ...] = (20, 100), rows_a_step: int = 256
) -> Iterator[dict]:
    """Yield the angles of an MLP with a head, taught by the dense teacher with Adam, at `steps` of its training."""
    torch.manual_seed(0)
    teacher, width = LanguageTeacher(vocab), 64
    trunk = nn.Sequential(nn.Linear(LanguageTeacher.CONTEXT, 256), nn.GELU(), nn.Linear(256, width))
    weight, bias = nn.Parameter(0.1 * torch.randn(vocab, width)), nn.Parameter(torch.zeros(vocab))
    student = Student(trunk, lambda: Head(weight, bias), [*trunk.parameters(), weight, bias])
    optimizer = torch.optim.Adam(student.parameters, lr=2e-2)
    batch = [teacher.rows(512, 10_000 + i) for i in range(num_rows // 512)]
    for step in range(1, max(steps) + 1):
        gradient(student, [teacher.rows(rows_a_step, step)], lambda dense, start: dense, vocab, 1.0)
        optimizer.step()
        if step in steps:
            yield from angles(student, batch, vocab, 1.0, place="language", checkpoint=f"MLP, step {step}")
