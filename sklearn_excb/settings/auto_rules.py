"""What "auto" means: each rule one pure function of the data and K, never of the hardware.

Every rule but that of settling, which is not in the paper, lands on the published recipe for
ImageNet (1,281,167 photos, K = 65,536; METHOD.md 6). Empty and largest clusters in the measurements
below are those before the centroids settle. What is "chosen" has not been measured.
"""

from __future__ import annotations

import math
import re
from typing import Any

IMAGENET = 1_281_167
IMAGENET_K = 65_536
PRETRAINED_SIZE = 224  # pixels that nearly all published weights were trained at
MOST_ENLARGED = 4  # times
_PATCH = re.compile(r"patch(\d+)")


def n_clusters(n_samples: int) -> int:
    """K in the paper's ratio on ImageNet, 19.5 images a cluster; at least 2."""
    return max(2, round(n_samples * IMAGENET_K / IMAGENET))


def n_samples(n_clusters: int) -> int:
    """Images of which K would be the number of clusters."""
    return round(n_clusters * IMAGENET / IMAGENET_K)


FEW = 10_000  # images, below which "auto" shows them small, to the small CNN


def image_size(n_samples: int, short_side: int, *, small_network: bool = False) -> int:
    """Side of the global views: that of the images, from 24 px, up to what n can use.

    The limit grows from 64 px below 5,000 images to 224 px at ImageNet's number; for the small CNN
    it is 32 px below FEW. A multiple of 8 pixels, from 64 on of 16.

    1,600 clothing photos, three seeds, the small CNN at 32 px and a ResNet-18 at 64: k-NN .523 and
    .388 (pixels .455), probe .657 and .409, NMI .234 and .130, in float32 18 and 67 minutes of a
    core. In so few steps the ResNet hardly learns: its loss ends at 3.8 to 3.9 of ln K = 4.41. The
    small CNN at 40 px, one seed: .458, .608, .202 (at 32 px that seed: .537, .637, .236). FEW is a
    choice that nobody measured.
    """
    span = math.log(n_samples / 5_000) / math.log(IMAGENET / 5_000)
    limit = 64 * (224 / 64) ** min(max(span, 0.0), 1.0)
    if small_network and n_samples < FEW:
        limit = 32.0
    size = min(short_side, limit)
    return max(24, 8 * round(size / 8)) if size < 60 else 16 * round(size / 16)


def frozen_image_size(short_side: int) -> int:
    """Side of images for a frozen backbone: that of its training, as far as they can be enlarged.

    They go through it once, so that their size costs little.
    """
    return min(PRETRAINED_SIZE, MOST_ENLARGED * max(8, short_side))


def local_size(image_size: int) -> int:
    """Side of the local views: 96 at 224 px as published, the same share elsewhere, as chosen.

    A multiple of 16 pixels, and at least 16.
    """
    return min(image_size, max(16, 16 * round(image_size * 96 / 224 / 16)))


def whole_patches(size: int, backbone: Any, *, down: bool = False) -> int:
    """Size in whole patches, for a transformer that says in its name how large they are."""
    said = _PATCH.search(backbone) if isinstance(backbone, str) else None
    if said is None:
        return size
    patch = int(said[1])
    return max(patch, (size if down else size + patch // 2) // patch * patch)


def n_local(image_size: int, kind: str) -> int:
    """Six local views as published; two below 64 px and for rows, where a step stays short.

    The limit and the two are chosen.
    """
    return 6 if kind == "images" and image_size >= 64 else 2


def flip(n_channels: int) -> float:
    """Probability of a mirror image: .5 for colour pictures, 0 for others.

    Left and right often mean something in gray images and in stacks of channels (characters,
    scans, spectrograms). Digits, one seed: k-NN .967 with, .989 without.
    """
    return 0.5 if n_channels == 3 else 0.0


def _smallness(image_size: int) -> float:
    """0 at 224 px and above, 1 at 32 px and below, linear in the logarithm between."""
    share = math.log(224 / image_size) / math.log(224 / 32)
    return min(max(share, 0.0), 1.0)


def smallest_global(image_size: int) -> tuple[float, float]:
    """Smallest area of a global crop: .26 -> .14 at 224 px, .7 -> .6 at 32 px.

    Inference sees the whole image: the nearer the crops are to it, the better plain inference
    is balanced. Digits, three seeds: .7 -> .6 left 0.0 % empty and gave NMI .668, .5 -> .4 left
    2.1 % and gave .653.
    """
    small = _smallness(image_size)
    return (0.26 + (0.7 - 0.26) * small, 0.14 + (0.6 - 0.14) * small)


def smallest_local(image_size: int) -> float:
    """Smallest area of a local crop: .05 at 224 px, .3 at 32 px, where less shows nothing.

    Digits, two seeds: .2 left one of 74 clusters empty, .3 and .4 none (effective share .90, .92
    and .92; held-out k-NN .989, .992 and .988).
    """
    return 0.05 + (0.3 - 0.05) * _smallness(image_size)


def backbone(n_samples: int, image_size: int, kind: str) -> str:
    """A small CNN below 64 px, so for few photos too; ResNet-18 below 200,000, else ResNet-50.

    Rows are features already: they get a projector alone, a linear layer that keeps distances at
    first (:func:`sklearn_excb.networks.student_teacher.keep_distances`). On 4,000 MNIST images as
    rows the NMI is
    .521 (three seeds), with two hidden layers .474 (untrained, they have .345), by k-means .517. On
    digits, iris and two moons both are within .02 of each other; on wine (178 rows, K = 9) the
    hidden layers had .60, this has .56.

    For what a ResNet-18 makes of few photos see :func:`image_size`; the 200,000 are chosen.
    """
    if kind == "rows":
        return "identity"
    if image_size < 64:
        return "cnn"
    return "resnet18" if n_samples < 200_000 else "resnet50"


def batch_size(n_samples: int) -> int:
    """64 at 1,500 images, 1,024 at ImageNet's number: a power of two; at most n.

    Digits, three seeds, 32, 64, 128 and 512: NMI .683, .676, .672 and .661, k-NN .993, .993, .994
    and .991 (``--study ablations``). Half of the rule's takes twice the steps, for little.
    """
    slope = math.log(1024 / 64) / math.log(IMAGENET / 1_500)
    exponent = round(math.log2(64) + slope * math.log2(n_samples / 1_500))
    return min(n_samples, 2 ** min(max(exponent, 3), 10))


def epochs(n_samples: int, batch_size: int) -> int:
    """400 at ImageNet's number as published, 36 at 1,500 images; never fewer than 200 steps.

    The 36 are chosen: minutes of a core.
    """
    slope = math.log(400 / 36) / math.log(IMAGENET / 1_500)
    wanted = 36 * (n_samples / 1_500) ** slope
    return max(math.ceil(200 / max(1, n_samples // batch_size)), round(wanted))


def optimizer(has_batch_norm: bool) -> str:
    """SGD as published for ResNets, AdamW as published for ViTs (backbones without BatchNorm)."""
    return "sgd" if has_batch_norm else "adamw"


def learning_rate(optimizer: str, batch_size: int) -> float:
    """.6 (SGD) and 2e-3 (AdamW) at 1,024 images a step; elsewhere times (B / 1024) ** .75.

    Between the linear rule and the square root. Digits, B = 64, two seeds: .075 left the largest
    cluster at 2.6 and gave a k-NN of the projections of .978 and .985; the linear rule's .0375 gave
    4.2 and 3.7, .981 and .970.
    """
    return (0.6 if optimizer == "sgd" else 2e-3) * (batch_size / 1024) ** 0.75


def weight_decay(optimizer: str) -> tuple[float, float]:
    """At the start and the end of the run: 1e-4 (SGD), .04 -> .4 (AdamW)."""
    return (1e-4, 1e-4) if optimizer == "sgd" else (0.04, 0.4)


def warmup_epochs(epochs: int, steps_per_epoch: int) -> float:
    """10 of 400 epochs; a tenth of a shorter run, and 60 steps, but no more than .3 of it.

    Digits, B = 256 (200 steps), one seed: 60 steps left 1 of 74 clusters empty and gave NMI .592
    and k-NN .975; 20 steps left 18 and gave .542 and .969.
    """
    few = min(0.3 * epochs, 60 / max(1, steps_per_epoch))
    return max(min(10.0, epochs / 10), few)


def teacher_momentum(total_steps: int) -> float:
    """Momentum at the start: .996 at ImageNet's 500,000 steps, .9 in runs of up to 2,000.

    A power of the number of steps between. An average over a twentieth of the run lags behind.
    2,000 images, 1,240 steps, one seed, .9 beside .984: CIFAR-10 has a k-NN of .479 beside .444 and
    an NMI of .251 beside .228, MNIST .958 beside .944 and .589 beside .553. Digits, 561 steps, two
    seeds, .9 beside .974 (in float32): k-NN .991 beside .986, NMI .693 beside .680
    (``--study tuning`` of benchmarks.learning); with .7 clusters were far from even until they
    settle.
    """
    window = 250 * (total_steps / 500_000) ** 0.58
    return 1 - 1 / min(max(window, 10), 250)


def size_momentum(labels_per_step: int, n_clusters: int, total_steps: int) -> float:
    """Momentum of the size measure, from its window: 31 labels a cluster, and 64 steps.

    31 labels a cluster are the paper's (.999 at 2,048 labels a step and K = 65,536). Where they
    pass in a few steps, the window is 64 steps, or a quarter of a shorter run. Digits (K = 78, 828
    steps of 128 labels, two seeds): 64 steps left one cluster empty, the largest at 2.6; 200 steps,
    one seed, one empty and the largest at 4.4.
    """
    steps = max(31.25 * n_clusters / labels_per_step, min(64, total_steps / 4), 1.25)
    return 1 - 1 / steps


def head_width(n_samples: int) -> int:
    """2,048 as published from 100,000 images on, 512 below 10,000, as chosen; a power of two."""
    if n_samples >= 100_000:
        return 2048
    return 1024 if n_samples >= 10_000 else 512


def settle_passes(balancing: str) -> int:
    """10 where clusters are balanced by their sizes, 0 for the baselines, as published.

    Digits with K = n / 5 and B = 256, one seed: 38 % empty before, .7 % after ten passes; effective
    share .40 and .91. Two passes have most of it (.89).
    """
    return 10 if balancing in ("linear", "exponential") else 0
