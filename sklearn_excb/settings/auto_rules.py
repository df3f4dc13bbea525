"""The rules of "auto". Each rule is one pure function of the data and K, never of the hardware.

At the scale of ImageNet (1,281,167 photos, K = 65,536) every rule gives the published recipe,
except :func:`settle_passes`, which is not in the paper. The docstrings report empty and largest
clusters before the centroids settle. A value that is called "chosen" was not measured.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

IMAGENET = 1_281_167
IMAGENET_K = 65_536
PRETRAINED_SIZE = 224  # pixels; nearly all published weights were trained at this size
FEWEST_ROWS = 200  # below it, ten neighbours are a large share of all rows
FEW_PER_CLUSTER = 30  # rows per cluster below which neighbourhoods are no views
MOST_SEARCHED = 200_000  # rows up to which the neighbours of all rows are searched
MOST_ENLARGED = 4  # largest factor by which images are enlarged
_PATCH = re.compile(r"patch(\d+)")


def n_clusters(n_samples: int) -> int:
    """Return K in the paper's ratio on ImageNet, 19.5 images per cluster; at least 2."""
    return max(2, round(n_samples * IMAGENET_K / IMAGENET))


def n_samples(n_clusters: int) -> int:
    """Return the number of images for which :func:`n_clusters` gives this K."""
    return round(n_clusters * IMAGENET / IMAGENET_K)


FEW = 10_000  # with fewer images, "auto" uses the small CNN on small views


def image_size(n_samples: int, short_side: int, *, small_network: bool = False) -> int:
    """Return the side of the global views: that of the images, within limits.

    The side is at least 24 px. Its upper limit grows with the number of images, from 64 px below
    5,000 images to 224 px at ImageNet's number. For the small CNN the limit is 32 px below FEW
    images. The side is a multiple of 8 pixels, and from 64 px on a multiple of 16.

    Measured on 1,600 clothing photos with three seeds, the small CNN at 32 px and a ResNet-18 at
    64 px: k-NN .523 and .388 (pixels .455), probe .657 and .409, NMI .234 and .130, in 18 and 67
    minutes of one core in float32. The ResNet hardly learns in so few steps: its loss ends at 3.8
    to 3.9, where ln K is 4.41. The small CNN at 40 px, one seed: .458, .608 and .202 (the same seed
    at 32 px: .537, .637 and .236). FEW is chosen.
    """
    span = math.log(n_samples / 5_000) / math.log(IMAGENET / 5_000)
    limit = 64 * (224 / 64) ** min(max(span, 0.0), 1.0)
    if small_network and n_samples < FEW:
        limit = 32.0
    size = min(short_side, limit)
    return max(24, 8 * round(size / 8)) if size < 60 else 16 * round(size / 16)


def frozen_image_size(short_side: int) -> int:
    """Return the side of images for a frozen backbone: 224 px, or four times their own side.

    Nearly all pretrained backbones were trained at 224 px. Each image goes through the frozen
    backbone only once, so its size costs little.
    """
    return min(PRETRAINED_SIZE, MOST_ENLARGED * max(8, short_side))


def local_size(image_size: int) -> int:
    """Return the side of the local views: 96 px at 224 px as published, else in proportion.

    The proportion is chosen. The side is a multiple of 16 pixels, and at least 16.
    """
    return min(image_size, max(16, 16 * round(image_size * 96 / 224 / 16)))


def whole_patches(size: int, backbone: Any, *, down: bool = False) -> int:
    """Round a size to whole patches, if the backbone's name gives the size of a patch."""
    found = _PATCH.search(backbone) if isinstance(backbone, str) else None
    if found is None:
        return size
    patch = int(found[1])
    return max(patch, (size if down else size + patch // 2) // patch * patch)


def feature_views(n_samples: int, n_clusters: int) -> Literal["noise", "neighbours"]:
    """Return the views of rows and frozen features: by neighbours, or with noise.

    Neighbourhoods need clusters of many rows, and a search that compares all rows with all (the
    limit of 200,000 is chosen). AMI with neighbourhoods, noise and k-means: digits at K = 50 (29
    rows per cluster) .674, .660 and .684, at K = 74 (19 rows) .615, .627 and .645 with far less
    even clusters; iris at K = 6 (20 rows) .485, .538 and .533; at K = 3, wine (142 rows) .781, .810
    and .846, and iris (120 rows) .637, .669 and .646 (one to three seeds).
    """
    few = n_samples < max(FEWEST_ROWS, FEW_PER_CLUSTER * n_clusters)
    many = n_samples > MOST_SEARCHED
    return "noise" if few or many else "neighbours"


def size_tolerance(n_samples: int, n_clusters: int, views: str) -> float:
    """Return the tolerance of cluster sizes: 1 as published, up to 2 for neighbourhoods.

    Few clusters are kinds, and kinds have sizes of their own. The tolerance rises from 1 at 20
    samples per cluster, about the paper's number, to 2 at 100; both numbers are chosen. MNIST (800
    per cluster, one seed): tolerances of 1, 1.5, 2 and 3 gave an NMI of .589, .622, .646 and .651.
    Crops were not measured with any but 1.
    """
    if views != "neighbours":
        return 1.0
    share = math.log(n_samples / n_clusters / 20) / math.log(100 / 20)
    return 1.0 + min(max(share, 0.0), 1.0)


def n_starts(n_clusters: int, views: str) -> int:
    """Return the number of k-means runs at the start: 1 as published, 10 for neighbourhoods.

    Above 100 clusters it falls to 1, since runs take longer. The numbers are chosen.
    """
    return min(max(round(1000 / n_clusters), 1), 10) if views == "neighbours" else 1


def n_local(image_size: int, views: str) -> int:
    """Return the number of local views: six as published, two below 64 px and for noise.

    Two views keep a step short. The number two and the limit of 64 px are chosen. With
    neighbourhoods, the only local view is the row itself.
    """
    if views == "neighbours":
        return 1
    return 6 if views == "crops" and image_size >= 64 else 2


def flip(n_channels: int) -> float:
    """Return the probability of a mirror image: .5 for images with three channels, else 0.

    Left and right often carry meaning in gray images and in stacks of channels (characters,
    scans, spectrograms). Digits, one seed: k-NN .967 with mirror images, .989 without.
    """
    return 0.5 if n_channels == 3 else 0.0


def _smallness(image_size: int) -> float:
    """Return 0 at 224 px and above, 1 at 32 px and below, linear in the logarithm between."""
    share = math.log(224 / image_size) / math.log(224 / 32)
    return min(max(share, 0.0), 1.0)


def smallest_global(image_size: int) -> tuple[float, float]:
    """Return the smallest area of a global crop: .26 -> .14 at 224 px, .7 -> .6 at 32 px.

    The two values are for the first and the last epoch. Inference sees the whole image: the nearer
    the crops are to it, the better plain inference is balanced. Digits, three seeds: .7 -> .6 left
    0.0 % of the clusters empty and gave NMI .668, .5 -> .4 left 2.1 % empty and gave .653.
    """
    small = _smallness(image_size)
    return (0.26 + (0.7 - 0.26) * small, 0.14 + (0.6 - 0.14) * small)


def smallest_local(image_size: int) -> float:
    """Return the smallest area of a local crop: .05 at 224 px, .3 at 32 px.

    Smaller crops of such small images show nothing. Digits, two seeds: .2 left one of 74 clusters
    empty, .3 and .4 left none (effective share .90, .92 and .92; held-out k-NN .989, .992 and
    .988).
    """
    return 0.05 + (0.3 - 0.05) * _smallness(image_size)


def backbone(n_samples: int, image_size: int, kind: str) -> str:
    """Return the backbone: the small CNN below 64 px, else ResNet-18 or ResNet-50.

    The small CNN is thus also the backbone for few photos. :func:`image_size` tells how a ResNet-18
    does on them. ResNet-50 starts at 200,000 images, which is chosen.

    Rows are features already and get a projector alone. It is a linear layer that keeps distances
    at the start (:func:`sklearn_excb.networks.student_teacher.keep_distances`). On 4,000 MNIST
    images as rows, its NMI is .521 (three seeds). With two hidden layers the NMI is .474 (untrained
    .345), and with k-means .517. On digits, iris and two moons, the two projectors are within .02
    of each other. On wine (178 rows, K = 9), the NMI is .56, and .60 with the hidden layers.
    """
    if kind == "rows":
        return "identity"
    if image_size < 64:
        return "cnn"
    return "resnet18" if n_samples < 200_000 else "resnet50"


def batch_size(n_samples: int) -> int:
    """Return the batch size: 64 at 1,500 images, 1,024 at ImageNet's number; at most n.

    The size is a power of two, unless n is smaller. Digits, three seeds, batches of 32, 64, 128 and
    512: NMI .683, .676, .672 and .661, k-NN .993, .993, .994 and .991 (``--study ablations``). Half
    the rule's size takes twice the steps and gains little.
    """
    slope = math.log(1024 / 64) / math.log(IMAGENET / 1_500)
    exponent = round(math.log2(64) + slope * math.log2(n_samples / 1_500))
    return min(n_samples, 2 ** min(max(exponent, 3), 10))


def epochs(n_samples: int, batch_size: int, views: str = "crops") -> int:
    """Return the epochs: 400 at ImageNet's number as published, 36 at 1,500 images.

    A run has at least 200 steps. The 36 epochs are chosen; they take one core minutes. With
    neighbourhoods, a run has 800 steps, but at least 5 epochs. 800, 400 and 200 steps gave an NMI
    of .869, .858 and .830 on digits, .670, .661 and .655 on MNIST, and .553, .549 and .547 on
    features of clothing photos (K = number of classes, one seed).
    """
    if views == "neighbours":
        return max(math.ceil(800 / max(1, n_samples // batch_size)), 5)
    slope = math.log(400 / 36) / math.log(IMAGENET / 1_500)
    wanted = 36 * (n_samples / 1_500) ** slope
    return max(math.ceil(200 / max(1, n_samples // batch_size)), round(wanted))


def optimizer(has_batch_norm: bool) -> str:
    """Return SGD as published for ResNets, or AdamW as for ViTs (backbones without BatchNorm)."""
    return "sgd" if has_batch_norm else "adamw"


def learning_rate(optimizer: str, batch_size: int) -> float:
    """Return the learning rate: .6 (SGD) or 2e-3 (AdamW), times (B / 1024) ** .75.

    The exponent lies between those of the linear rule and the square-root rule. Digits, B = 64, two
    seeds: .075 left the largest cluster at 2.6 and gave a k-NN of the projections of .978 and .985;
    the linear rule's .0375 gave largest clusters of 4.2 and 3.7, and a k-NN of .981 and .970.
    """
    return (0.6 if optimizer == "sgd" else 2e-3) * (batch_size / 1024) ** 0.75


def weight_decay(optimizer: str) -> tuple[float, float]:
    """Return the weight decay at the start and the end of a run: 1e-4 (SGD), .04 -> .4 (AdamW)."""
    return (1e-4, 1e-4) if optimizer == "sgd" else (0.04, 0.4)


def warmup_epochs(epochs: int, steps_per_epoch: int) -> float:
    """Return the warm-up: 10 epochs as published, or a tenth of runs below 100 epochs.

    A short run warms up for at least 60 steps, but for no more than .3 of the run. Digits, B = 256
    (200 steps), one seed: 60 steps left 1 of 74 clusters empty and gave NMI .592 and k-NN .975; 20
    steps left 18 empty and gave .542 and .969.
    """
    few = min(0.3 * epochs, 60 / max(1, steps_per_epoch))
    return max(min(10.0, epochs / 10), few)


def teacher_momentum(total_steps: int, views: str = "crops") -> float:
    """Return the momentum at the start: .996 at ImageNet's 500,000 steps, .9 up to 2,000 steps.

    Between these, the averaging window of the teacher is a power of the number of steps. A window
    of a twentieth of the run lags behind.

    2,000 images, 1,240 steps, one seed, .9 against .984: CIFAR-10 has a k-NN of .479 against .444
    and an NMI of .251 against .228; MNIST has .958 against .944, and .589 against .553. Digits, 561
    steps, two seeds, .9 against .974 (in float32): k-NN .991 against .986, NMI .693 against .680
    (``--study tuning`` of benchmarks.learning). With .7, the clusters were far from even before
    they settled.

    With neighbourhoods it is .97: with .9, labels drifted from those of the start
    (``docs/design.md``).
    """
    if views == "neighbours":
        return 0.97
    window = 250 * (total_steps / 500_000) ** 0.58
    return 1 - 1 / min(max(window, 10), 250)


def size_momentum(labels_per_step: int, n_clusters: int, total_steps: int) -> float:
    """Return the momentum of the measured sizes; its window is 31 labels per cluster or 64 steps.

    The window is the longer of the two. 31 labels per cluster are those of the paper (.999 at 2,048
    labels per step and K = 65,536). The 64 steps are at most a quarter of the run. Digits (K = 78,
    828 steps of 128 labels): 64 steps left one cluster empty and the largest at 2.6 (two seeds);
    200 steps left one empty and the largest at 4.4 (one seed).
    """
    steps = max(31.25 * n_clusters / labels_per_step, min(64, total_steps / 4), 1.25)
    return 1 - 1 / steps


def head_width(n_samples: int) -> int:
    """Return the hidden width: 2,048 as published from 100,000 images on, else 1,024 or 512.

    The two smaller widths and the limits of 100,000 and 10,000 images are chosen.
    """
    if n_samples >= 100_000:
        return 2048
    return 1024 if n_samples >= 10_000 else 512


def settle_passes(balancing: str) -> int:
    """Return 10 passes if clusters are balanced by their sizes, and 0 for the baselines.

    The baselines do not settle as published. Digits with K = n / 5 and B = 256, one seed: 38 % of
    the clusters are empty before and .7 % after ten passes; the effective share is .40 and .91. Two
    passes have most of the effect (.89).
    """
    return 10 if balancing in ("linear", "exponential") else 0
