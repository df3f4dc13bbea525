"""Resolved parameters of a fit: the user's choices, and the rules of "auto" for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from sklearn_excb.settings import auto_rules


@dataclass(frozen=True)
class Facts:
    """Facts about the data that the rules of "auto" may use.

    Attributes
    ----------
    n_samples : int
        Number of images or rows to fit.
    kind : {"images", "rows"}
        Kind of the samples.
    shape : tuple of int
        Typical (height, width) of the images in pixels; (0, 0) for rows.
    n_channels : int
        Number of channels of the images, or of features of the rows.
    is_whole : bool, default=True
        Whether all samples are at hand from the start, unlike those of a stream.
    """

    n_samples: int
    kind: Literal["images", "rows"]
    shape: tuple[int, int]
    n_channels: int
    is_whole: bool = True

    @property
    def short_side(self) -> int:
        """The smaller of height and width, in pixels."""
        return min(self.shape)


@dataclass(frozen=True)
class Settings:
    """Resolved parameters of a fit, named as on the estimator, and values derived from them.

    Attributes
    ----------
    smallest_global : tuple of two float
        Smallest share of an image's area that a global crop takes, in the first and last epoch.
    smallest_local : float
        Smallest share of an image's area that a local crop takes.
    head_width : int
        Hidden width of the predictor and, unless it is linear, of the projector.
    micro_batch : int
        Number of images that go through the networks at once, at most ``batch_size``.
    freeze_backbone : bool
        Whether the backbone is frozen. Views are then made of features, not of images.
    precision : str
        Precision of matrix products; "auto" until the device is known.
    views : {"crops", "noise", "neighbours"}
        Kind of the views.
    size_tolerance : float
        Factor by which a cluster may be too large or too small before it is balanced.
    n_starts : int
        Number of k-means runs, of which the best gives the first centroids.
    """

    K: int
    backbone: Any
    image_size: int
    local_size: int
    n_global: int
    n_local: int
    n_channels: int
    epochs: int
    batch_size: int
    micro_batch: int
    precision: str
    optimizer: str
    learning_rate: float
    weight_decay: tuple[float, float]
    warmup_epochs: float
    teacher_momentum: float
    size_momentum: float
    teacher_temperature: tuple[float, float]
    student_temperature: float
    balancing: Literal["linear", "exponential", "centering", "sinkhorn", "none"]
    count_labels: str
    local_in_loss_h: bool
    settle_passes: int
    flip: float
    smallest_global: tuple[float, float]
    smallest_local: float
    head_width: int
    freeze_backbone: bool = False  # from here on, the values in files that are older
    views: Literal["crops", "noise", "neighbours"] = "crops"
    size_tolerance: float = 1.0
    n_starts: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Return all settings by name; a module is given by the name of its class."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        if not isinstance(self.backbone, str):
            named["backbone"] = type(self.backbone).__name__
        return named

    @property
    def has_backbone(self) -> bool:
        """Whether there is a backbone. Rows have none by default, and only the heads learn."""
        return self.backbone != "identity"

    @property
    def inference_batch(self) -> int:
        """Number of images per batch of inference: 256, or fewer if training steps are split.

        For a frozen backbone, it is fewer for large images: as many pixels as 256 images of 64.
        """
        if self.freeze_backbone:
            return min(256, max(32, 256 * 64**2 // self.image_size**2 // 32 * 32))
        return 256 if self.micro_batch == self.batch_size else min(256, max(32, self.micro_batch))

    def steps_per_epoch(self, n_samples: int) -> int:
        """Return the number of full batches in an epoch; the last partial batch is dropped."""
        return n_samples // self.batch_size


def resolve(parameters: Mapping[str, Any], facts: Facts, *, has_batch_norm: bool) -> Settings:
    """Replace every "auto" by the value of its rule, and keep the user's choices.

    Parameters
    ----------
    parameters : mapping
        Parameters of the estimator, already validated one by one.
    facts : Facts
        Facts about the data.
    has_batch_norm : bool
        Whether the heads contain BatchNorm. They do if the backbone does, and for rows and frozen
        features.
    """

    def chosen(name: str, by_rule: Any) -> Any:
        return by_rule if _is_auto(parameters[name]) else type(by_rule)(parameters[name])

    images = facts.kind == "images"
    n = facts.n_samples
    K = chosen("K", auto_rules.n_clusters(n))
    size = resolve_image_size(parameters, facts)
    views = resolve_views(parameters, facts, K)
    batch = min(n, chosen("batch_size", auto_rules.batch_size(n)))
    n_epochs = chosen("epochs", auto_rules.epochs(n, batch, views))
    kind = chosen("optimizer", auto_rules.optimizer(has_batch_norm))
    decay = parameters["weight_decay"]
    n_global = int(parameters["n_global"])
    total_steps = n_epochs * (n // batch)
    labels_a_step = batch * n_global
    frozen = bool(parameters["freeze_backbone"])
    of_local = auto_rules.whole_patches(auto_rules.local_size(size), parameters["backbone"])
    return Settings(
        K=K,
        backbone=resolve_backbone(parameters, facts),
        image_size=size,
        local_size=chosen("local_size", of_local if images else 0),
        n_global=n_global,
        n_local=chosen("n_local", auto_rules.n_local(size, views)),
        n_channels=facts.n_channels,
        epochs=n_epochs,
        batch_size=batch,
        micro_batch=_micro_batch(parameters["micro_batch"], batch),
        precision=parameters["precision"],
        optimizer=kind,
        learning_rate=chosen("learning_rate", auto_rules.learning_rate(kind, batch)),
        weight_decay=auto_rules.weight_decay(kind) if _is_auto(decay) else _pair(decay),
        warmup_epochs=chosen("warmup_epochs", auto_rules.warmup_epochs(n_epochs, n // batch)),
        teacher_momentum=chosen(
            "teacher_momentum", auto_rules.teacher_momentum(total_steps, views)
        ),
        size_momentum=chosen(
            "size_momentum", auto_rules.size_momentum(labels_a_step, K, total_steps)
        ),
        teacher_temperature=_pair(parameters["teacher_temperature"]),
        student_temperature=float(parameters["student_temperature"]),
        balancing=parameters["balancing"],
        count_labels=parameters["count_labels"],
        local_in_loss_h=parameters["local_in_loss_h"],
        settle_passes=chosen("settle_passes", auto_rules.settle_passes(parameters["balancing"])),
        flip=chosen("flip", auto_rules.flip(facts.n_channels) if images else 0.0),
        smallest_global=auto_rules.smallest_global(size) if images else (1.0, 1.0),
        smallest_local=auto_rules.smallest_local(size) if images else 1.0,
        head_width=chosen("head_width", auto_rules.head_width(n)),
        freeze_backbone=frozen,
        views=views,
        size_tolerance=chosen("size_tolerance", auto_rules.size_tolerance(n, K, views)),
        n_starts=auto_rules.n_starts(K, views),
    )


def _micro_batch(chosen: Any, batch_size: int) -> int:
    """Return the chosen size, or the whole batch; "auto" is resolved once memory is known."""
    return batch_size if chosen is None or _is_auto(chosen) else min(int(chosen), batch_size)


def _pair(value: Any) -> tuple[float, float]:
    """Return the first and last value of a parameter that may be a single value."""
    first, last = value if isinstance(value, (tuple, list)) else (value, value)
    return float(first), float(last)


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


def resolve_views(
    parameters: Mapping[str, Any], facts: Facts, n_clusters: int
) -> Literal["crops", "noise", "neighbours"]:
    """Return the kind of the views: crops of images, or noise or neighbourhoods for features."""
    chosen, frozen = parameters["views"], bool(parameters["freeze_backbone"])
    if facts.kind == "images" and not frozen:
        return "crops"
    if not _is_auto(chosen):
        return "noise" if chosen == "noise" else "neighbours"
    linear = frozen or resolve_backbone(parameters, facts) == "identity"
    if linear and facts.is_whole:
        return auto_rules.feature_views(facts.n_samples, n_clusters)
    return "noise"


def resolve_image_size(parameters: Mapping[str, Any], facts: Facts) -> int:
    """Return the side of the global views; 0 for rows."""
    if facts.kind == "rows":
        return 0
    chosen = parameters["image_size"]
    if not _is_auto(chosen):
        return int(chosen)
    if parameters["freeze_backbone"]:
        most = auto_rules.frozen_image_size(facts.short_side)
        return auto_rules.whole_patches(most, parameters["backbone"], down=True)
    of_ours = parameters["backbone"] in ("auto", "cnn") and not parameters["pretrained"]
    size = auto_rules.image_size(facts.n_samples, facts.short_side, small_network=of_ours)
    return auto_rules.whole_patches(size, parameters["backbone"])


def resolve_backbone(parameters: Mapping[str, Any], facts: Facts) -> Any:
    """Return the name of the backbone, or the user's module."""
    chosen = parameters["backbone"]
    if not _is_auto(chosen):
        return chosen
    size = resolve_image_size(parameters, facts)
    if parameters["pretrained"] and facts.kind == "images":
        size = max(size, 64)  # the small CNN, chosen below 64 px, has no pretrained weights
    return auto_rules.backbone(facts.n_samples, size, facts.kind)
