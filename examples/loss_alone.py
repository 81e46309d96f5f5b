"""The fused loss without the trainer: hidden states of student and teacher in, one loss out."""

import torch

# --8<-- [start:example]
from kernels import DenseTeacher, Head, RowWeights, linear_distill_loss

N, H, Ht, V = 6, 16, 32, 100
hidden = torch.randn(N, H, requires_grad=True)
weight = torch.randn(V, H, requires_grad=True)
teacher = DenseTeacher(torch.randn(N, Ht), Head(torch.randn(V, Ht)))
labels = torch.randint(V, (N,))
each = torch.full((N,), 1 / N)  # the weight of a row; here every term is a mean over rows

out = linear_distill_loss(
    hidden, Head(weight), teacher, labels, RowWeights(kd=0.7 * each, truth=0.3 * each), temperature=2.0
)
out.loss.backward()
# --8<-- [end:example]

print(f"loss {out.loss.item():.3f}: divergence {out.divergence.mean():.3f}, nll {out.nll.mean():.3f}")
