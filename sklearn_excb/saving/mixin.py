"""save, load, from_checkpoint and the exports."""

from __future__ import annotations

import os
from typing import Any, Self, cast

from sklearn.utils.validation import check_is_fitted
from torch import nn

from sklearn_excb.inference.learned import INPUT_FACTS, LearnedAttributes
from sklearn_excb.runtime.devices import resolve_device
from sklearn_excb.runtime.process_state import seed_from, usual_modes
from sklearn_excb.saving.saved_estimator import load_estimator, save_estimator
from sklearn_excb.settings.validation import CHECKPOINT_PARAMETERS, check_parameters
from sklearn_excb.training.teacher_outputs import Embedding


class PersistenceMixin(LearnedAttributes):
    """Methods that write and read the files of a fitted estimator."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a folder: safetensors and JSON, nothing executable.

        Parameters
        ----------
        path : str or path-like
            Folder, created if it does not exist. It can be loaded on any device. The parameters of
            checkpoints (``checkpoint_dir`` and the like) are not saved.
        """
        check_is_fitted(self)
        facts = {name: self.__dict__[name] for name in INPUT_FACTS if name in self.__dict__}
        parameters = self.get_params(deep=False)
        parameters = {n: value for n, value in parameters.items() if n not in CHECKPOINT_PARAMETERS}
        with usual_modes():
            save_estimator(path, parameters, self.resolved_params_, facts, self._fitted)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, backbone: nn.Module | None = None) -> Self:
        """Read an estimator that :meth:`save` wrote, or a checkpoint of a fit.

        Parameters
        ----------
        path : str or path-like
            Folder of a saved estimator; or a checkpoint in a ``checkpoint_dir``, such as its
            ``best.safetensors``, while the fit runs or later. An estimator from a checkpoint has
            the teacher of that step, with centroids that have not settled, and no labels of the
            training samples.
        backbone : nn.Module, optional
            Module of the architecture that was fitted; required if that was the user's own.

        Raises
        ------
        FileNotFoundError
            If the file or the saved estimator does not exist.
        ValueError
            If the file has an unknown version, needs ``backbone``, or has changed since it was
            written (the subclass ``DamagedFileError``).
        """
        with usual_modes():
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
        """Read a network that the authors of ExCB or of DINO have published, for inference.

        Parameters
        ----------
        path : str or path-like
            Checkpoint of a ResNet or a ViT: a full checkpoint, whose entry "teacher" has the head,
            or one of DINO's backbones alone. Nothing in the file is executed.
        **params
            Parameters of the estimator: ``embedding``, ``device``, ``n_jobs``, ... The file
            determines ``K``, ``backbone``, ``image_size``, ``n_channels`` and ``head_width``.

        Returns
        -------
        ExCBEstimator
            Fitted estimator, for :meth:`predict` and :meth:`transform`; ``fit`` would train anew.
            It has no training samples, and therefore no ``labels_``, and ``history_`` is empty. In
            ``resolved_params_``, parameters of training have the values for a fit of ImageNet, and
            "published" has the arguments of the network's training, if the file contains them. A
            backbone alone returns features (``embedding="backbone"``) and has no clusters: there is
            no :meth:`predict` and no ``cluster_centers_``, and K is 0 in ``resolved_params_``.

        Raises
        ------
        FileNotFoundError, IsADirectoryError
            If there is no such file, or if it is a folder.
        ValueError
            If the file is no such checkpoint, is broken, or would have to execute code. If tensors
            are missing or have another shape, or the architecture is unknown; the message has their
            names. If a parameter contradicts the file.
        sklearn.exceptions.NotFittedError
            Raised later, also as an AttributeError, by uses that need labels of training samples,
            or clusters of a backbone alone.

        Notes
        -----
        Inference uses the teacher, without balancing or centering. Whole images are prepared as in
        the release: resized to 256 pixels, with a bilinear filter for ExCB and a bicubic one for
        DINO, cropped to the middle 224 pixels, and normalised by ImageNet's statistics. ExCB's
        release has a standard deviation of .228 for red.

        DINO's prototypes are ``g v / |v|``. If their lengths g differ, as in its ViT-S,
        :meth:`predict` returns the cluster with the largest product of g and the cosine, as DINO
        does. ``cluster_centers_`` and the similarities of :meth:`transform` are those of unit
        vectors, and ``cluster_gains_`` has g. See ``docs/published.md``.
        """
        from sklearn_excb.saving.published import read_published

        check_parameters(cls(**params).get_params(deep=False))
        with usual_modes():
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
        """Write the inference of :meth:`predict` and :meth:`transform` to one ONNX file.

        Parameters
        ----------
        path : str or path-like
            Path of the file, which is replaced if it exists. Weights of more than 1.5 GB are
            written to a second file beside it, whose name has ".data" appended. Keep both files
            together.
        dtype : {"float32", "uint8", "float64"}, default="float32"
            Type of the input. Images may be float32 in [0, 1] or uint8, rows float32 or float64.

        Raises
        ------
        ImportError
            If the extra "onnx" is not installed.
        OSError
            If the file cannot be written.
        ValueError
            If ``dtype`` is not allowed, or if torch.export cannot export the backbone.
        RuntimeError
            If onnxruntime computes other results than this estimator. This is checked before the
            file is written.

        Notes
        -----
        The input is "images" of shape (n, c, height, width), any number of images of one size,
        which the file resizes, crops and normalises; or "rows" (n, d), which it standardises. The
        outputs are "embedding", of the kind that ``embedding`` names now, float32; "cluster", (n,),
        int64; and "similarity", the cosine to each centroid, (n, K), float32. The metadata of the
        file have the preparation of the samples, K, and the versions. See ``docs/exporting.md``.
        """
        from sklearn_excb.saving.export import export_onnx

        check_is_fitted(self)
        self._need_clusters("export_onnx")
        check_parameters(self.get_params(deep=False))
        with usual_modes():
            export_onnx(self._fitted, path, embedding=cast(Embedding, self.embedding), dtype=dtype)

    def export_backbone(self, path: str | os.PathLike[str]) -> None:
        """Write the weights of the backbone alone, as safetensors.

        Parameters
        ----------
        path : str or path-like
            Path of the file, which is replaced if it exists. Its metadata say how to build the
            network of the weights, and how to prepare images for it.

        Raises
        ------
        OSError
            If the file cannot be written.
        ValueError
            If there is no backbone, the default for rows.

        Notes
        -----
        The weights have the names of the library that the backbone comes from. With timm,
        ``create_model("resnet18", num_classes=0, checkpoint_path=path)`` loads them. In evaluation
        mode, that model computes the output of :meth:`transform` with ``embedding="backbone"``.
        ``docs/exporting.md`` shows the other libraries.
        """
        from sklearn_excb.saving.export import export_backbone

        check_is_fitted(self)
        with usual_modes():
            export_backbone(self._fitted, path)
