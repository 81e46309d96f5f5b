# type: ignore  # pyright checks kd, kernels and launch (pyproject.toml)
"""The losses against a derivation of their own: closed forms by hand, in numpy and fp64, one row at a time.

Nothing here comes from kernels/: neither its reference nor autograd. Divergences over tokens i, with s = z / T:

    forward_kl  D = sum p (log p - log q)                            dD/ds = q - p
    reverse_kl  D = sum q (log q - log p)                            dD/ds = q (log q - log p - D)
    jsd         D = b KL(p || m) + (1 - b) KL(q || m)                dD/ds = (1 - b) q (log(q / m) - KL(q || m))
                m = b p + (1 - b) q
    loss        kd T^2 D + (truth + span) nll + hard nll(argmax u)   dz = kd T dD/ds + a (softmax(z) - onehot)
"""

import numpy as np
import pytest
import torch

from kernels import EntropyWeighting, RowWeights, distill_loss

ENTROPY = EntropyWeighting(h_min=0.5, h_max=3.0, kd=(0.3, 0.8), truth=(0.6, 0.1), hard=(0.1, 0.4))


def log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def derive_row(z, u, label, weights, settings):
    """Return a row's loss, its gradient [V], and what its divergence adds to the loss."""
    t, beta = settings["temperature"], settings["beta"]
    log_q, log_p, log_1 = log_softmax(z / t), log_softmax(u / t), log_softmax(z)
    q, p = np.exp(log_q), np.exp(log_p)
    if settings["divergence"] == "forward_kl":
        divergence = (p * (log_p - log_q)).sum()
        slope = q - p
    elif settings["divergence"] == "reverse_kl":
        divergence = (q * (log_q - log_p)).sum()
        slope = q * (log_q - log_p - divergence)
    else:
        log_m = np.log(beta * p + (1 - beta) * q)
        of_q = (q * (log_q - log_m)).sum()
        divergence = beta * (p * (log_p - log_m)).sum() + (1 - beta) * of_q
        slope = (1 - beta) * q * (log_q - log_m - of_q)
    kd, truth, span, hard = weights
    if settings["entropy"] is not None:
        e, sure = settings["entropy"], log_softmax(u)
        n = np.clip((-(np.exp(sure) * sure).sum() - e.h_min) / (e.h_max - e.h_min), 0.0, 1.0)
        kd, truth, hard = (
            w * (ends[0] + (ends[1] - ends[0]) * n) for w, ends in ((kd, e.kd), (truth, e.truth), (hard, e.hard))
        )
    choice = u.argmax()
    grad = kd * t * slope + (truth + span + hard) * np.exp(log_1)
    grad[label] -= truth + span
    grad[choice] -= hard
    return kd * t * t * divergence - (truth + span) * log_1[label] - hard * log_1[choice], grad, kd * t * divergence


def random_call(seed):
    """Make a call of distill_loss: logits with padding beside them, weights of which some are off, settings."""
    rng = np.random.default_rng(seed)
    rows, vocab, extra = int(rng.integers(1, 5)), int(rng.integers(2, 200)), int(rng.integers(0, 9))
    spread, shift = rng.choice([0.1, 1.0, 5.0, 20.0]), rng.choice([0.0, 0.0, 300.0])
    z, u = (torch.tensor(rng.normal(shift, spread, (rows, vocab + extra)), dtype=torch.float32) for _ in range(2))
    divergence = str(rng.choice(["forward_kl", "reverse_kl", "jsd"]))
    settings = dict(
        temperature=float(rng.choice([1.0, 2.0, 3.0, 4.0, 0.7, 3.3])),
        divergence=divergence,
        beta=float(rng.uniform(0.05, 0.95)) if divergence == "jsd" else None,
        entropy=ENTROPY if rng.random() < 0.4 else None,
    )
    weights = [torch.tensor(rng.uniform(0, 1, rows), dtype=torch.float32) for _ in range(4)]
    on = [weight if rng.random() < 0.75 else None for weight in weights]
    labels = torch.tensor(rng.integers(0, vocab, rows))
    return z, u, labels, RowWeights(*on), settings, vocab


def check(seed, impl):
    z, u, labels, weights, settings, vocab = random_call(seed)
    leaf = z.clone().requires_grad_()
    output = distill_loss(leaf, u, labels, weights, **settings, vocab_size=vocab, impl=impl)
    output.loss.backward()
    loss, grads, taken_off = 0.0, [], 0.0
    for row in range(len(z)):
        used = [0.0 if weight is None else float(weight[row]) for weight in weights]
        exact, grad, divergence = derive_row(
            z[row, :vocab].double().numpy(), u[row, :vocab].double().numpy(), int(labels[row]), used, settings
        )
        loss += exact
        grads.append(grad)
        taken_off = max(taken_off, divergence)
    found, grads = leaf.grad.double().numpy(), np.array(grads)
    assert not found[:, vocab:].any()
    size = max(np.abs(grads).max(), 0.05)  # a probability near 1 is rounded, whatever is left of it
    what = f"call {seed}: {settings}, {[weight is not None for weight in weights]}"
    # A slope is a difference to the divergence, whose own rounding stays when both are large and near.
    assert np.abs(found[:, :vocab] - grads).max() <= 6e-6 * size + 4e-7 * taken_off, what
    assert abs(output.loss.item() - loss) <= 4e-6 * max(abs(loss), 1.0), what


def test_reference_on_500_calls():
    for seed in range(500):
        check(seed, "reference")


def test_kernel_on_some_calls(narrow_tiles):
    for seed in range(12):
        check(seed, "triton")


@pytest.mark.slow
def test_kernel_on_500_calls(narrow_tiles):
    for seed in range(500):
        check(seed, "triton")
