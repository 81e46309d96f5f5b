"""One optimizer step's loss and gradient as a textbook would have them: one process, fp64, one record at a time.

Shares nothing with kd/objective/loss.py, kd/batching/steps.py or kernels/: what the engine computes is held against
this.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from kd.rendering.encode import encode

# What the scenarios weigh each term with (tests/distributed/conftest.py).
SHARES = {"kd": 0.5, "hard": 0.3, "truth": 0.2, "tool": 0.15, "args": 0.15, "integration": 0.1}
BITS = {"truth": 1, "tool": 2, "args": 4, "integration": 8}


def plain_step(
    weights: dict[str, torch.Tensor],
    model_config,
    teacher_folder,
    tokenizer,
    records,
    *,
    temperature: float = 2.0,
    shares: dict[str, float],
    entropy=None,
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """(value of each term, gradient of their sum by parameter) over `records` as one step.

    Args:
        weights: the student's parameters before the step. shares: the weight of each of the six terms.
        entropy: (h_min, h_max, {term: (first, second)}) replaces the shares of kd, hard and truth at each token.
    """
    student = AutoModelForCausalLM.from_config(model_config, attn_implementation="eager").double()
    named = dict(student.named_parameters())
    assert named.keys() == weights.keys()
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder, attn_implementation="eager", dtype=torch.float64)
    vocab = len(tokenizer)

    rows = []  # (weight of the record, bits, value of each term before any weight)
    for record in records:
        encoded = encode(record, tokenizer)
        ids, bits = torch.tensor(encoded.input_ids), torch.tensor(encoded.bits)
        z = student(ids[None]).logits[0, :-1, :vocab]
        with torch.no_grad():
            u = teacher(ids[None]).logits[0, :-1, :vocab]
        log_q, p = torch.log_softmax(z, -1), torch.softmax(u, -1)
        nll, hard = F.nll_loss(log_q, ids[1:], reduction="none"), F.nll_loss(log_q, u.argmax(-1), reduction="none")
        kl = F.kl_div(torch.log_softmax(z / temperature, -1), torch.softmax(u / temperature, -1), reduction="none").sum(
            -1
        )
        values = {"kd": temperature**2 * kl, "hard": hard, "truth": nll, "tool": nll, "args": nll, "integration": nll}
        factors = dict.fromkeys(values, 1.0)
        if entropy is not None:
            h_min, h_max, ends = entropy
            n = ((-(p * p.log()).sum(-1) - h_min) / (h_max - h_min)).clamp(0, 1)
            factors |= {term: first + (second - first) * n for term, (first, second) in ends.items()}
        weight = 1.0 if record.quality is None else record.quality
        rows.append((weight, bits[1:], {term: value * factors[term] for term, value in values.items()}))

    terms = {}
    for term, share in shares.items():
        bit = BITS.get(term, BITS["truth"])
        counted = sum(weight * int(((bits & bit) != 0).sum()) for weight, bits, _ in rows)
        total = sum(weight * values[term][(bits & bit) != 0].sum() for weight, bits, values in rows)
        terms[term] = share * total / counted if counted else total * 0
    sum(terms.values()).backward()
    return {term: value.item() for term, value in terms.items()}, {name: p.grad for name, p in named.items()}
