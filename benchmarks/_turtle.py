"""TURTLE: labels that a linear classifier learns well, with balanced classes.

A. Gadetsky, Y. Jiang, M. Brbić, "Let Go of Your Labels with Unsupervised Transfer", ICML 2024,
arXiv:2406.07236. Settings are those of the authors' code, with one space of features. Rows are
centred and divided by one number, as pixels have another scale than the features of the paper.
"""

import numpy as np
import torch
from torch.nn import Linear
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import weight_norm

STEPS, INNER_STEPS, BATCH = 6000, 10, 10_000
RATE, GAMMA = 1e-3, 10.0  # weight of the entropy of the classes, Eq. 12


def turtle(train: np.ndarray, held_out: np.ndarray, K: int, seed: int, steps: int = STEPS):
    """Return labels of training and of held-out rows."""
    mean, scale = train.mean(axis=0), train.std(axis=0)
    length = float(np.sqrt(np.mean(scale**2)))
    X, others = (torch.from_numpy((rows - mean) / length) for rows in (train, held_out))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        task = weight_norm(Linear(X.shape[1], K))
        outer = torch.optim.Adam(task.parameters(), RATE)
        for _ in range(steps):
            x = X if len(X) <= BATCH else X[torch.randperm(len(X))[:BATCH]]
            labels = task(x).softmax(dim=1)  # (rows, K)
            classifier = _classifier(x, labels.detach(), K)
            logits = classifier(x).detach()
            entropy = torch.special.entr(labels.mean(dim=0)).sum()
            loss = cross_entropy(logits, labels) - GAMMA * entropy  # Eq. 12, 13
            outer.zero_grad()
            loss.backward()
            outer.step()
    with torch.no_grad():
        return tuple(task(rows).argmax(dim=1).numpy() for rows in (X, others))


def _classifier(x: torch.Tensor, labels: torch.Tensor, K: int) -> Linear:
    """Train a classifier from scratch by a few steps (the cold start of the authors' code)."""
    classifier = Linear(x.shape[1], K)
    inner = torch.optim.Adam(classifier.parameters(), RATE)
    for _ in range(INNER_STEPS):
        inner.zero_grad()
        cross_entropy(classifier(x), labels).backward()
        inner.step()
    return classifier
