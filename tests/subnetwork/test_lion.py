"""Lion against the paper's formula, written out entry by entry."""

from __future__ import annotations

import torch

from lape_ds.subnetwork.lion import Lion


def test_lion_follows_algorithm_2() -> None:
    """arXiv 2302.06675: c = b1 m + (1-b1) g; w -= lr (sign(c) + wd w); m = b2 m + (1-b2) g."""
    lr, beta1, beta2, decay = 1e-2, 0.9, 0.99, 0.1
    param = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = Lion([param], lr=lr, betas=(beta1, beta2), weight_decay=decay)
    weights, momenta = param.tolist(), [0.0] * 3
    for step in range(10):
        grads = [0.3 - 0.1 * step, -1.0, 0.01 * (-1) ** step]
        param.grad = torch.tensor(grads)
        optimizer.step()
        for i, grad in enumerate(grads):
            mixed = beta1 * momenta[i] + (1 - beta1) * grad
            sign = (mixed > 0) - (mixed < 0)
            weights[i] -= lr * (sign + decay * weights[i])
            momenta[i] = beta2 * momenta[i] + (1 - beta2) * grad
    torch.testing.assert_close(param.detach(), torch.tensor(weights), rtol=1e-5, atol=1e-6)
