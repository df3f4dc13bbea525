"""TEMI: clusters that neighbours share, by pointwise mutual information, with several heads.

N. Adaloglou, F. Michels, H. Kalisch, M. Kollmann, "Exploring the Limits of Deep Image Clustering
using Pretrained Models", BMVC 2023, arXiv:2303.17896. Settings are those of the authors' code for
CIFAR-10, but with 4 heads instead of 16 and 3,000 steps of 128 rows instead of 4,900 of 1,024,
for a CPU. Features are standardised. No row has more neighbours than half of a mean cluster.
"""

import copy

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrizations import weight_norm

from evaluation import nearest_neighbors

HEADS, STEPS, BATCH, NEIGHBORS = 4, 3000, 128, 50
RATE, WEIGHT_DECAY, WARM_UP = 1e-4, 1e-4, 0.2
BETA, TEMPERATURE, TEACHER_MOMENTUM, PRIOR_MOMENTUM = 0.6, 0.1, 0.996, 0.9


class _Head(nn.Module):
    def __init__(self, d: int, K: int) -> None:
        super().__init__()
        first, second, last = nn.Linear(d, 512), nn.Linear(512, 256), nn.Linear(256, K, bias=False)
        for layer in (first, second):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        last.weight.data = normalize(last.weight.data, dim=1)
        self.mlp, self.last = nn.Sequential(first, nn.GELU(), second), weight_norm(last)

    def forward(self, x: Tensor) -> Tensor:
        return (self.last(normalize(self.mlp(x), dim=1)) / TEMPERATURE).softmax(dim=1)


def temi(train: np.ndarray, held_out: np.ndarray, K: int, seed: int, steps: int = STEPS):
    """Return labels of training and of held-out rows, by the head with the lowest loss."""
    scaler = StandardScaler().fit(train)
    X, others = (torch.from_numpy(np.float32(scaler.transform(of))) for of in (train, held_out))
    near = max(1, min(NEIGHBORS, len(X) // (2 * K)))
    found = nearest_neighbors(train, train, near + 1, metric="cosine")[1]
    neighbors = torch.from_numpy(np.ascontiguousarray(found[:, 1:]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = nn.ModuleList(_Head(X.shape[1], K) for _ in range(HEADS))
        teachers = copy.deepcopy(heads).requires_grad_(False)
        optimizer = torch.optim.AdamW(heads.parameters(), RATE, weight_decay=WEIGHT_DECAY)
        warm_up = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / (WARM_UP * steps))
        )
        priors = [torch.full((K,), 1 / K) for _ in range(HEADS)]
        mean_losses = torch.zeros(HEADS)
        for _ in range(steps):
            rows = torch.randint(len(X), (BATCH,))
            pairs = neighbors[rows, torch.randint(near, (BATCH,))]
            x = torch.cat([X[rows], X[pairs]])
            losses = _losses([head(x) for head in heads], [head(x) for head in teachers], priors)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            warm_up.step()
            with torch.no_grad():
                mean_losses.lerp_(losses.detach(), 0.01)
                for old, new in zip(teachers.parameters(), heads.parameters(), strict=True):
                    old.lerp_(new, 1 - TEACHER_MOMENTUM)
    best = teachers[int(mean_losses.argmin())]
    with torch.no_grad():
        return tuple(best(part).argmax(dim=1).numpy() for part in (X, others))


def _losses(students: list[Tensor], teachers: list[Tensor], priors: list[Tensor]) -> Tensor:
    """Return the loss of each head, and update the priors; weights are means over heads."""
    halves = [teacher.chunk(2) for teacher in teachers]
    weight = torch.stack([(a * b).sum(dim=1) for a, b in halves]).mean(dim=0)
    losses = []
    for i, student in enumerate(students):
        priors[i] = torch.lerp(teachers[i].mean(dim=0), priors[i], PRIOR_MOMENTUM)
        for s, t in zip(student.chunk(2), reversed(halves[i]), strict=True):
            information = ((s * t) ** BETA / priors[i]).sum(dim=1).log()
            losses.append(-(weight * information).mean() / 2)
    return torch.stack(losses).reshape(-1, 2).sum(dim=1)
