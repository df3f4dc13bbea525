"""save, load, from_checkpoint and the exports."""

from __future__ import annotations

import os
from typing import Any, Self, cast

import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sklearn_excb.inference.learned import INPUT_FACTS, LearnedAttributes
from sklearn_excb.runtime.devices import resolve_device
from sklearn_excb.runtime.generator_state import seed_from
from sklearn_excb.saving.saved_estimator import load_estimator, save_estimator
from sklearn_excb.settings.validation import CHECKPOINT_PARAMETERS, check_parameters
from sklearn_excb.training.teacher_outputs import Embedding


class PersistenceMixin(LearnedAttributes):
    """Files of a fitted estimator, written and read."""

    device: str | torch.device
    random_state: Any
    image_shape_: tuple[int, int]
    n_channels_: int
    skipped_: list[Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a folder: safetensors and JSON, nothing executable.

        Parameters
        ----------
        path : str or path-like
            Folder; made if it is not there. What is in it loads on any device. ``checkpoint_dir``
            and what goes with it are not saved.
        """
        check_is_fitted(self)
        facts = {name: self.__dict__[name] for name in INPUT_FACTS if name in self.__dict__}
        parameters = self.get_params(deep=False)
        parameters = {n: value for n, value in parameters.items() if n not in CHECKPOINT_PARAMETERS}
        save_estimator(path, parameters, self.resolved_params_, facts, self._fitted)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, backbone: nn.Module | None = None) -> Self:
        """Read an estimator that :meth:`save` wrote, or a state of a run.

        Parameters
        ----------
        path : str or path-like
            The folder; or a state of a ``checkpoint_dir``, such as its ``best.safetensors``, while
            the fit is at work or later: the teacher as it was then, before the centroids settle,
            without labels of the training samples.
        backbone : nn.Module, optional
            A module of the architecture that was fitted, where that was the user's own.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ValueError
            If it was written by a version that is not known here, needs ``backbone``, or is not as
            it was written; ``DamagedFileError``, one of its kind.
        """
        parameters, resolved, facts, fitted = load_estimator(path, backbone)
        # save() leaves out those of checkpoints; other files must not say where a fit writes
        parameters = {n: of for n, of in parameters.items() if n not in CHECKPOINT_PARAMETERS}
        known = cls().get_params(deep=False).keys()
        for kind, unknown in (
            ("parameters", parameters.keys() - known),
            ("facts", facts.keys() - set(INPUT_FACTS)),
        ):
            if unknown:
                raise ValueError(
                    f"{path} has {kind} that this {cls.__name__} does not know: "
                    f"{', '.join(sorted(unknown))}. Load it with the version that wrote it, if "
                    "save() wrote it."
                )
        estimator = cls(**parameters)
        estimator.__dict__.update(facts)
        estimator._set_fitted(fitted, resolved)
        return estimator

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], **params: Any) -> Self:
        """Read a network that the authors of ExCB or of DINO publish, to predict with it.

        Parameters
        ----------
        path : str or path-like
            The file, of a ResNet or a ViT: a full checkpoint, with an entry "teacher" that has the
            head, or one of DINO's backbones alone. Nothing in it is executed.
        **params
            Parameters of the estimator: ``embedding``, ``device``, ``n_jobs``, ... ``K``,
            ``backbone``, ``image_size``, ``n_channels`` and ``head_width`` are those of the file.

        Returns
        -------
        ExCBEstimator
            Fitted, for :meth:`predict` and :meth:`transform`; ``fit`` would train anew. It has no
            training samples, so no ``labels_``, and ``history_`` is empty. Parameters of training
            in ``resolved_params_`` are what a fit of ImageNet would take; what the network was
            trained with is there under "published", if the file says so. A backbone alone gives
            features (``embedding="backbone"``) and has no clusters: no :meth:`predict`, no
            ``cluster_centers_``, and K is 0 in ``resolved_params_``.

        Raises
        ------
        FileNotFoundError, IsADirectoryError
            If there is no such file, or it is a folder.
        ValueError
            If it is no such checkpoint, is broken or holds what would have to be executed; if
            tensors are missing or of another shape, or the architecture is unknown, with their
            names; or if a parameter contradicts it.
        sklearn.exceptions.NotFittedError
            Afterwards, an AttributeError: if labels of training samples are asked for, or clusters
            of a backbone alone.

        Notes
        -----
        Inference is the teacher's, without balancing or centering. Whole images are prepared as the
        release does: resized to 256 pixels, by a bilinear filter for ExCB and a bicubic one for
        DINO, the middle 224 taken, normalised by ImageNet's statistics, of which ExCB's release
        has .228 for red's deviation.

        DINO's prototypes are ``g v / |v|``. Where their lengths g differ, as in its ViT-S,
        :meth:`predict` is the largest of g times the cosine, as it is there; ``cluster_centers_``
        and the similarities that :meth:`transform` gives stay those of unit vectors, and g is
        ``cluster_gains_``. See ``docs/published.md``.
        """
        from sklearn_excb.saving.published import read_published

        check_parameters(cls(**params).get_params(deep=False))
        published = read_published(path)
        estimator = cls(**published.parameters(params))
        parameters = estimator.get_params(deep=False)
        device = resolve_device(estimator.device)
        fitted = published.fitted(parameters, device)
        estimator.image_shape_ = fitted.image_shape
        estimator.n_channels_ = fitted.settings.n_channels
        estimator.skipped_ = []
        run = {
            "device": str(device),
            "random_state": seed_from(estimator.random_state),
            "published": {"release": published.release.name, "args": published.args},
        }
        estimator._set_fitted(fitted, parameters | run | fitted.settings.as_dict())
        return estimator

    def export_onnx(self, path: str | os.PathLike[str], *, dtype: str = "float32") -> None:
        """Write what :meth:`predict` and :meth:`transform` do as one ONNX file.

        Parameters
        ----------
        path : str or path-like
            The file; replaced if it is there. Weights of more than 1.5 GB lie beside it, in a file
            of that name with ".data" at its end, which has to go wherever it goes.
        dtype : {"float32", "uint8", "float64"}, default="float32"
            Of the input. Images may be float32 in [0, 1], or uint8; rows float32 or float64.

        Raises
        ------
        ImportError
            If the extra "onnx" is not installed.
        OSError
            If the file cannot be written.
        ValueError
            If ``dtype`` is none of those, or torch.export cannot take the backbone.
        RuntimeError
            If onnxruntime does not compute what this estimator does, as is tried before the file is
            written.

        Notes
        -----
        The input, "images" of shape (n, c, height, width), takes any number of images of any one
        size: they are resized, cropped and normalised inside. Or it is "rows", (n, d), which are
        standardised inside. The outputs are "embedding", what ``embedding`` names now, float32;
        "cluster", (n,), int64; and "similarity", the cosine to each centroid, (n, K), float32. How
        the samples are prepared, K, and the versions are in the file's metadata. See
        ``docs/exporting.md``.
        """
        from sklearn_excb.saving.export import export_onnx

        check_is_fitted(self)
        self._need_clusters("export_onnx")
        check_parameters(self.get_params(deep=False))
        export_onnx(self._fitted, path, embedding=cast(Embedding, self.embedding), dtype=dtype)

    def export_backbone(self, path: str | os.PathLike[str]) -> None:
        """Write the weights of the backbone alone, as safetensors.

        Parameters
        ----------
        path : str or path-like
            The file; replaced if it is there. Its metadata say what builds the network they belong
            to, and how images are prepared for it.

        Raises
        ------
        OSError
            If the file cannot be written.
        ValueError
            If there is no backbone, as by default for rows.

        Notes
        -----
        Their names are those of the library that the backbone comes from: timm's
        ``create_model("resnet18", num_classes=0, checkpoint_path=path)`` takes them as they are,
        and gives in evaluation mode what :meth:`transform` does with ``embedding="backbone"``.
        ``docs/exporting.md`` has the others.
        """
        from sklearn_excb.saving.export import export_backbone

        check_is_fitted(self)
        export_backbone(self._fitted, path)
