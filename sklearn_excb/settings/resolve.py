"""Every parameter of a fit, resolved: what the user chose, and the rules of "auto" for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from sklearn_excb.settings import auto_rules


@dataclass(frozen=True)
class Facts:
    """What the rules may look at.

    Attributes
    ----------
    n_samples : int
        Images or rows to fit.
    kind : {"images", "rows"}
        Which of the two.
    shape : tuple of int
        Typical (height, width) of the images in pixels; (0, 0) for rows.
    n_channels : int
        Channels of the images, features of the rows.
    """

    n_samples: int
    kind: Literal["images", "rows"]
    shape: tuple[int, int]
    n_channels: int

    @property
    def short_side(self) -> int:
        """The smaller of height and width, in pixels."""
        return min(self.shape)


@dataclass(frozen=True)
class Settings:
    """Every parameter of a fit, resolved. Names as on the estimator, and what follows from them.

    Attributes
    ----------
    smallest_global : tuple of two float
        Smallest share of the area of a global crop, first and last epoch.
    smallest_local : float
        Smallest share of the area of a local crop.
    head_width : int
        Hidden width of the predictor and, unless it is linear, of the projector.
    micro_batch : int
        Images that go through the networks at once, at most ``batch_size``.
    freeze_backbone : bool
        Whether views are those of features, not of images.
    precision : str
        "auto" until the device is known.
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
    freeze_backbone: bool = False  # as in what was written before there was one

    def as_dict(self) -> dict[str, Any]:
        """Return every setting by its name; a module by that of its class."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        if not isinstance(self.backbone, str):
            named["backbone"] = type(self.backbone).__name__
        return named

    @property
    def has_backbone(self) -> bool:
        """Whether there is one; for rows there is none by default, and a projector alone learns."""
        return self.backbone != "identity"

    @property
    def inference_batch(self) -> int:
        """Images that inference takes at once: 256, or fewer where steps are split."""
        return 256 if self.micro_batch == self.batch_size else min(256, max(32, self.micro_batch))

    def steps_per_epoch(self, n_samples: int) -> int:
        """Full batches in an epoch; the last partial one is dropped."""
        return n_samples // self.batch_size


def resolve(parameters: Mapping[str, Any], facts: Facts, *, has_batch_norm: bool) -> Settings:
    """Replace every "auto" by what its rule gives; leave what the user chose.

    Parameters
    ----------
    parameters : mapping
        The estimator's parameters, already validated one by one.
    facts : Facts
        Of the data.
    has_batch_norm : bool
        Whether there is BatchNorm inside the heads: where the backbone has it, and on features.
    """

    def chosen(name: str, by_rule: Any) -> Any:
        return by_rule if _is_auto(parameters[name]) else type(by_rule)(parameters[name])

    images = facts.kind == "images"
    n = facts.n_samples
    K = chosen("K", auto_rules.n_clusters(n))
    size = resolve_image_size(parameters, facts)
    batch = min(n, chosen("batch_size", auto_rules.batch_size(n)))
    n_epochs = chosen("epochs", auto_rules.epochs(n, batch))
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
        n_local=chosen("n_local", auto_rules.n_local(size, "rows" if frozen else facts.kind)),
        n_channels=facts.n_channels,
        epochs=n_epochs,
        batch_size=batch,
        micro_batch=_micro_batch(parameters["micro_batch"], batch),
        precision=parameters["precision"],
        optimizer=kind,
        learning_rate=chosen("learning_rate", auto_rules.learning_rate(kind, batch)),
        weight_decay=auto_rules.weight_decay(kind) if _is_auto(decay) else _pair(decay),
        warmup_epochs=chosen("warmup_epochs", auto_rules.warmup_epochs(n_epochs, n // batch)),
        teacher_momentum=chosen("teacher_momentum", auto_rules.teacher_momentum(total_steps)),
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
    )


def _micro_batch(chosen: Any, batch_size: int) -> int:
    """The whole batch, unless fewer are asked for; "auto" is settled where memory is known."""
    return batch_size if chosen is None or _is_auto(chosen) else min(int(chosen), batch_size)


def _pair(value: Any) -> tuple[float, float]:
    """First and last value of what may be given as one."""
    first, last = value if isinstance(value, (tuple, list)) else (value, value)
    return float(first), float(last)


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"


def resolve_image_size(parameters: Mapping[str, Any], facts: Facts) -> int:
    """Side of the global views, 0 for rows."""
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
    """Name of the backbone, or the user's module."""
    chosen = parameters["backbone"]
    if not _is_auto(chosen):
        return chosen
    size = resolve_image_size(parameters, facts)
    if parameters["pretrained"] and facts.kind == "images":
        size = max(size, 64)  # nobody has trained the small one
    return auto_rules.backbone(facts.n_samples, size, facts.kind)
