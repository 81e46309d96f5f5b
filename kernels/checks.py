"""Checks of a loss's inputs and settings. Every error is a ValueError that says what to change.

Nothing here reads a tensor's values on a device: ids, labels and probabilities that cannot be make their rows NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels import divergences
from kernels.contract import EntropyWeighting, Options, RowWeights, Scalar, Settings, SparseTeacher


def host_number(value: Scalar, name: str, device: torch.device) -> Scalar:
    """Return a float if the host knows the value without waiting; a 0-d tensor on the logits' device stays one."""
    if not isinstance(value, Tensor):
        return float(value)
    if value.dim() != 0:
        raise ValueError(f"{name} must be a number or a 0-d tensor, got shape {tuple(value.shape)}: one value a call")
    if value.device.type == "cpu":
        return float(value.detach())
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, the logits on {device}: move it there once, outside the loop")
    return value.detach()


def _check_positive(value: Scalar, name: str) -> Scalar:
    if isinstance(value, float) and not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value}; it must be positive and finite")
    return value


def _check_entropy(entropy: EntropyWeighting, device: torch.device) -> EntropyWeighting:
    h_min = host_number(entropy.h_min, "entropy.h_min", device)
    h_max = host_number(entropy.h_max, "entropy.h_max", device)
    if isinstance(h_min, float) and isinstance(h_max, float) and not h_min < h_max:
        raise ValueError(f"entropy.h_min ({h_min}) must be below entropy.h_max ({h_max}); both are in nats")

    def ends(term: str) -> tuple[Scalar, Scalar]:
        pair = getattr(entropy, term)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"entropy.{term} must be a pair (factor at n=0, factor at n=1), got {pair!r}")
        sure, unsure = (host_number(end, f"entropy.{term}", device) for end in pair)
        return sure, unsure

    return EntropyWeighting(h_min, h_max, ends("kd"), ends("truth"), ends("hard"))


def resolve_vocab_size(vocab_size: int | None, student_width: int, teacher_width: int | None) -> int:
    """Return the columns that count. Both widths may be padded; padding never gets probability."""
    narrow = student_width if teacher_width is None else min(student_width, teacher_width)
    if vocab_size is None:
        if teacher_width not in (None, student_width):
            raise ValueError(
                f"student has {student_width} columns and teacher {teacher_width}: "
                "pass vocab_size=len(tokenizer) so that padding gets no probability"
            )
        return student_width
    if not 1 <= vocab_size <= narrow:
        raise ValueError(f"vocab_size is {vocab_size}; it must lie between 1 and the narrower width, {narrow}")
    return int(vocab_size)


def check_rows(num_rows: int, device: torch.device, labels: Tensor, weights: RowWeights) -> RowWeights:
    """Check that labels and weights fit N rows. Return the weights detached: they are constants to autograd."""
    if labels.shape != (num_rows,) or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"labels must be int64 or int32 of shape [{num_rows}], got {labels.dtype} {list(labels.shape)}"
        )
    if not isinstance(weights, RowWeights):
        raise ValueError("weights must be a RowWeights(kd, truth, span, hard); a term that is off may be None")
    for name, tensor in [("labels", labels), *weights._asdict().items()]:
        if tensor is None:
            continue
        if tensor.shape != (num_rows,):
            raise ValueError(f"weights.{name} has shape {list(tensor.shape)}; one value a row, [{num_rows}], is needed")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, the student on {device}: move it there")
        if name != "labels" and not tensor.is_floating_point():
            raise ValueError(f"weights.{name} is {tensor.dtype}; use float32")
    return RowWeights(*(None if tensor is None else tensor.detach() for tensor in weights))


def check_sparse_teacher(teacher: SparseTeacher, num_rows: int, device: torch.device, divergence: str) -> SparseTeacher:
    """Check shapes, types and kind, and return the teacher detached. Slots stay on the device and are judged there."""
    if teacher.kind not in ("topk", "sampled"):
        raise ValueError(
            f"teacher.kind is {teacher.kind!r}: choose 'topk' (with the tail's mass) or 'sampled' (counts)"
        )
    if teacher.kind == "sampled" and divergence != "forward_kl":
        raise ValueError(
            f"a sampled teacher gives draws, from which {divergence} cannot be estimated without bias: "
            "use divergence='forward_kl', or a topk teacher"
        )
    ids = teacher.ids
    if ids.dim() != 2 or ids.dtype != torch.int32 or ids.shape[1] < 1:
        raise ValueError(f"teacher.ids must be int32 [N, K] with K >= 1, got {ids.dtype} {list(ids.shape)}")
    if teacher.probs.shape != ids.shape:
        raise ValueError(
            f"teacher.probs has shape {list(teacher.probs.shape)}, teacher.ids {list(ids.shape)}: give both [N, K]"
        )
    if len(ids) != num_rows:
        raise ValueError(
            f"teacher has {len(ids)} rows, the student {num_rows}: select the same supervised rows from both"
        )
    for name in ("log_tail", "entropy", "entropy_t", "argmax"):
        tensor = getattr(teacher, name)
        if tensor.shape != (num_rows,):
            raise ValueError(f"teacher.{name} has shape {list(tensor.shape)}; one value a row, [{num_rows}], is needed")
    if teacher.kind == "topk" and divergences.find(divergence).sparse is None:
        raise ValueError(
            f"divergence {divergence!r} has no formula for a topk teacher: register it with Divergence(sparse=...), or "
            "give the teacher's logits or hidden states"
        )
    for name, tensor in zip(teacher._fields, teacher[:-1]):
        if tensor.device != device:
            raise ValueError(f"teacher.{name} is on {tensor.device}, the student on {device}: move it there")
        if tensor.is_floating_point() == (name in ("ids", "argmax")):
            raise ValueError(f"teacher.{name} is {tensor.dtype}; ids and argmax are integers, all else floating point")
    return SparseTeacher._make([*(tensor.detach() for tensor in teacher[:-1]), teacher.kind])


def check_teacher_terms(has_teacher: bool, weights: RowWeights, entropy: EntropyWeighting | None) -> None:
    """Refuse weights that need a teacher where there is none: only truth and span are left then."""
    if has_teacher:
        return
    asked = [f"weights.{name}" for name in ("kd", "hard") if getattr(weights, name) is not None]
    asked += ["entropy"] if entropy is not None else []
    if asked:
        raise ValueError(f"{' and '.join(asked)} need a teacher: set to None, or pass the teacher")


def resolve_options(device: torch.device, widths: tuple[int, int | None], settings: Settings) -> Options:
    """Check every setting against the others and the two widths (student, teacher or None).

    Raises:
        ValueError: a setting out of range, or settings that contradict each other or the widths.
    """
    beta = None if settings.beta is None else host_number(settings.beta, "beta", device)
    divergence, beta = divergences.resolve(settings.divergence, beta)
    return Options(
        temperature=_check_positive(host_number(settings.temperature, "temperature", device), "temperature"),
        divergence=divergence,
        beta=beta,
        entropy=None if settings.entropy is None else _check_entropy(settings.entropy, device),
        vocab_size=resolve_vocab_size(settings.vocab_size, *widths),
        grad_scale=_check_positive(host_number(settings.grad_scale, "grad_scale", device), "grad_scale"),
    )
