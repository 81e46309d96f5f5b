"""A divergence: total variation, half the sum of |p - q| over the vocabulary."""

from kernels.divergences import Divergence, register_divergence


def total_variation(log_p, p, log_q):
    """Return D [n] from log p, p and log q, each [n, V]; or [n, K + 1] for a topk teacher's tokens and their rest."""
    return 0.5 * (p - log_q.exp()).abs().sum(-1)


register_divergence(Divergence("total_variation", dense=total_variation, sparse=total_variation))
