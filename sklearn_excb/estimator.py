"""The estimator: parameters, validation, learned attributes. The method lies in its modules."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from joblib import effective_n_jobs
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state, metadata_routing
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from sklearn_excb.data.input_errors import (
    check_several,
    images_for_rows,
    one_image_for_several,
    rows_for_images,
)
from sklearn_excb.data.open_source import StreamPart, are_rows, is_stream, open_source
from sklearn_excb.data.sources import ItemImages, Rows, Skipped, Source
from sklearn_excb.data.unusable_images import (
    drop_unusable,
    expand_labels,
    fill_skipped,
    skipped_of,
    warn_skipped,
    warn_unread,
)
from sklearn_excb.exceptions import DeviceWarning
from sklearn_excb.fitting.fit import Fitted, fit_source
from sklearn_excb.fitting.launch import fit_on, number_of_devices
from sklearn_excb.fitting.memory_budget import estimate_memory_of
from sklearn_excb.fitting.memory_estimate import MemoryEstimate
from sklearn_excb.fitting.partial_fit import OnlineFit
from sklearn_excb.fitting.stream import fit_stream
from sklearn_excb.networks.student_teacher import ClusterNetwork
from sklearn_excb.runtime.call_site import warn_caller
from sklearn_excb.runtime.devices import resolve_device
from sklearn_excb.runtime.ranks import Ranks
from sklearn_excb.runtime.rendezvous import join, place_of
from sklearn_excb.saving.saved_estimator import load_estimator, save_estimator
from sklearn_excb.settings.recipes import recipe
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.settings.validation import check_columns, check_out, check_parameters
from sklearn_excb.training.coarse_groups import check_n_groups, cut, merge_tree
from sklearn_excb.training.inference import (
    Embedding,
    assign,
    embed,
    infer_stream,
    split_among_devices,
)
from sklearn_excb.views.batches import inference_inputs, number_of_jobs

if TYPE_CHECKING:  # what a fit does not need is imported where it is
    from sklearn_excb.fitting.dry_run import DryRun

_INPUT_FACTS = (
    "n_features_in_",
    "feature_names_in_",
    "image_shape_",
    "n_channels_",
    "sample_names_",
    "skipped_",
    "ignored_files_",
)

_TRIED = 1000  # images that a rehearsal opens to see whether they can be used
_CHECKPOINT_PARAMETERS = (
    "checkpoint_dir",
    "checkpoint_every",
    "n_checkpoints",
    "resume",
    "warm_start",
)


class ExCBEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Cluster images, and learn their embeddings, without labels, by Explicit Cluster Balancing.

    Parameters
    ----------
    K : int or "auto", default="auto"
        Number of clusters, what KMeans calls ``n_clusters``. "auto" keeps the paper's ratio on
        ImageNet, 19.5 images a cluster.
    backbone : str or nn.Module, default="auto"
        Network f: "cnn" (a small one, for images below 64 pixels), the name of a timm model, that
        of a torchvision model as in "torchvision:resnet50", or a module that maps images
        (n, c, h, w), or rows (n, d), to features (n, d'). "auto" follows image size and number. For
        rows it is "identity": a linear projector alone learns; "mlp" puts hidden layers before it.
    pretrained : bool or path-like, default=False
        Whether the backbone starts with the weights that timm or torchvision names for it, from its
        cache or from the internet; or a file of such weights. ``"resnet18.a1_in1k"`` names those of
        a certain training. "auto" is then never "cnn", of which there are none.
    freeze_backbone : bool, default=False
        Whether these weights stay, or those of your own module: features of the images are computed
        once, and a linear projector, predictor and centroids are trained, on views of the features
        (those of rows, with noise) in the place of crops. Minutes for thousands of photos on a CPU.
        ``image_size="auto"`` is then 224 px, or four times what the images have.
    embedding : {"projection", "backbone", "similarity"}, default="projection"
        What :meth:`transform` gives: "projection", h(f(x)) as unit rows, of which
        ``argmax(T @ cluster_centers_.T)`` is :meth:`predict`; "backbone", f(x), for probes and
        neighbours (rows without a backbone, centred and scaled); "similarity", the cosine
        similarity to each centroid. May be set after fit.
    image_size : int or "auto", default="auto"
        Side of the global views in pixels. "auto" is that of the images, up to what their number
        is enough for: 32 pixels below 10,000 images, for other networks than "cnn" 64 below 5,000;
        80 pixels at 10,000, 224 at ImageNet's number.
    local_size : int or "auto", default="auto"
        Side of the local views in pixels.
    n_global : int, default=2
        Global views an image, at least 2.
    n_local : int or "auto", default="auto"
        Local views an image.
    n_channels : int or "auto", default="auto"
        Channels of the images; pictures and files are converted to 1 (gray) or 3. "auto" is that
        of the array, and 3 for files.
    flip : float or "auto", default="auto"
        Probability that a view is mirrored. "auto" is 0.5 for images with three channels and 0 for
        others (characters, scans, spectrograms), whose left and right often mean something.
    epochs : int or "auto", default="auto"
        Passes over the images. 0 leaves the network untrained and only starts the centroids.
    batch_size : int or "auto", default="auto"
        Images a step, at most ``n_samples``; the last partial batch of an epoch is dropped.
    steps_per_epoch : int or "auto", default="auto"
        For what can only be iterated. "auto" reads it once and keeps the images in memory. A number
        keeps none but a sample: each epoch takes as many batches, as they come, and the stream
        begins again when it ends. Processes of a launcher read a stream each. See :meth:`fit`.
    micro_batch : int, None or "auto", default=None
        Images that go through the networks at once: a step is taken in parts of at most as many,
        whose gradients add up, to save memory. What changes are the statistics of BatchNorm, which
        are those of a part (every predictor begins with BatchNorm), draws of dropout, and with
        ``balancing="sinkhorn"`` the targets, of each part by itself. None is
        the whole batch; "auto" the whole batch where it fits the device, else the largest of its
        halves, quarters, ... that does, by :meth:`estimate_memory`.
    precision : {"32", "bf16", "fp16"} or "auto", default="auto"
        Of the networks' products in training; weights, sums, the teacher's similarities and all
        inference are in float32. "auto" is "bf16" where the device multiplies in it (CUDA from
        compute capability 8 on, CPUs with AVX512-BF16), else "32"; and "32" where views are so
        small that gradients of convolutions in bfloat16 are undefined on a CPU. "fp16", for GPUs
        before those, scales the loss so that small gradients are not lost, and leaves out steps in
        which large ones overflow.
    compile : bool, default=False
        Whether torch.compile makes kernels of the backbone for training. That takes a minute or
        more at the start, and a C++ compiler on CPUs; results differ in rounding.
    head_width : int or "auto", default="auto"
        Hidden units of predictor and projector; that of rows and of frozen backbones has none.
    optimizer : {"sgd", "adamw"} or "auto", default="auto"
        "auto" is "sgd" for backbones with BatchNorm, frozen ones and rows without one, "adamw" for
        others.
    learning_rate : float or "auto", default="auto"
        Peak learning rate, reached after the warm-up.
    weight_decay : float, tuple of two float, or "auto", default="auto"
        At the start and the end of the run, by cosine; biases and norms are not decayed.
    warmup_epochs : float or "auto", default="auto"
        Epochs in which the learning rate rises from 0.
    teacher_momentum : float or "auto", default="auto"
        m of the teacher's EMA at the start, in [0, 1]; rises to 1 by cosine.
    size_momentum : float or "auto", default="auto"
        m_s of the EMA that measures cluster sizes, in [0, 1).
    teacher_temperature : float or tuple of two float, default=0.04
        tau_t of the teacher's softmax; two are the first, and the one reached after a tenth of the
        run, linearly.
    student_temperature : float, default=0.1
        tau_s of the student's softmax.
    balancing : {"linear", "exponential", "centering", "sinkhorn", "none"}, default="linear"
        What keeps clusters from collapsing. "linear" is the method, "exponential" its ablation:
        forms of the operator for clusters smaller than 1/K, see
        :func:`sklearn_excb.balancing.balance`. For comparison, with nothing else changed: the
        centering of DINO, the Sinkhorn-Knopp of SwAV (:mod:`sklearn_excb.method.baselines`), or
        nothing.
    count_labels : {"balanced", "plain"}, default="balanced"
        Whether sizes are measured from labels after or before balancing. "plain" is there for
        comparison: it left 70 to 99 % of the clusters of digits empty (``docs/results.md``).
    local_in_loss_h : bool, default=True
        Whether local views take part in the projector's half of the loss.
    settle_passes : int or "auto", default="auto"
        Passes over the projections of the training images, after training, in which the centroids
        move to where plain inference is balanced; the embeddings stay. 0 leaves them as training
        did. "auto" is 10, and 0 for the other methods of ``balancing``.
    on_error : {"raise", "skip"}, default="raise"
        What becomes of a file, or an item of a list or a data set, that is no usable image: an
        error that names it; or label -1 and an embedding of NaN, a warning, and an entry in
        ``skipped_``, while the others are fitted as if it had not been there.
    n_jobs : int, None or "auto", default="auto"
        Threads that open images; changes no result. "auto" is one for arrays and data sets, and one
        a core, at most 8, for files and lists; -1 is one a core, None is 1.
    device : str, torch.device or "auto", default="auto"
        Where the networks run.
    devices : int or "auto", default="auto"
        How many of them :meth:`fit` uses, a process each, started by itself; each takes its share
        of every batch, and the result is that of one, up to rounding. "auto" is every GPU of this
        machine, unless ``device`` names one of them, and one process on a CPU. Where a launcher
        (torchrun, srun, Ray Train, Spark) has started processes that all call fit, they fit
        together; 1 is then a fit of each by itself. :meth:`predict` and :meth:`transform` use every
        GPU too, as many as ``devices`` says and there are. See ``docs/scaling.md``.
    random_state : int, RandomState or None, default=None
        An int makes fits on a CPU identical bit for bit (same packages, number of threads and
        processor). Global random state is left alone.
    checkpoint_dir : str or path-like, optional
        Folder, made if it is not there, to which the state of the training is written as it goes
        on. A fit that finds a state there goes on from it (``resume``): after a crash, a kill or a
        pre-emption, the same line of code finishes the run, on a CPU bit for bit as if nothing had
        happened. One fit at a time. See ``docs/reliability.md``.
    checkpoint_every : int or "auto", default="auto"
        Steps between two states; the end of an epoch then has one too. "auto" is the end of each
        epoch, and ten minutes since the last, unless writing would take more than a twentieth of
        the time.
    n_checkpoints : int, default=2
        States that are kept: the last ones. Besides, the one with the lowest loss of those at the
        end of an epoch stays as ``best.safetensors``. :meth:`load` takes each of them.
    resume : {"auto", True, False}, default="auto"
        What a fit does about a state in ``checkpoint_dir``: goes on from it if there is one;
        True, there has to be one; False, there must be none.
    warm_start : bool, default=False
        Go on from the last fit's networks, sizes and optimiser, or from the state in
        ``checkpoint_dir``, with parameters or images that may have changed; ``epochs`` counts those
        before too. The state is kept in memory, and in pickles: some three times the network. False
        starts anew, and goes on in ``checkpoint_dir`` only with the same parameters and images.
    verbose : int, default=0
        1 shows a progress bar; 0 is silent.

    Attributes
    ----------
    labels_ : ndarray of shape (n_samples,), int64
        Cluster of each training sample: :meth:`predict` of the training data. Some of 0..K-1 may
        not occur; -1 is an image that was skipped. Not after :meth:`from_checkpoint`, or
        :meth:`load` of a state, which have no training samples; neither are
        ``relative_cluster_sizes_``.
    cluster_centers_ : ndarray of shape (K, D), float32
        Unit centroids in projection space, D = 256.
    cluster_gains_ : ndarray of shape (K,), float32
        By which similarities are multiplied before the largest is taken; only after
        :meth:`from_checkpoint`, of networks of DINO in which they differ.
    relative_cluster_sizes_ : ndarray of shape (K,), float64
        N_c K / N of each cluster, N being all that have one; 1 is balanced, 0 empty.
    linkage_ : ndarray of shape (K - 1, 4), float64
        Tree of the clusters for ``scipy.cluster.hierarchy`` (``dendrogram``, ``fcluster``), of
        which :meth:`predict` gives the groups: Ward's method on the clusters' means in the
        backbone's features (:func:`sklearn_excb.training.coarse_groups.group_centroids`), each
        weighing ``relative_cluster_sizes_``; without training samples on the centroids, all
        weighing the same. Made when it is first asked for.
    history_ : list of dict
        An entry an epoch, from 0, the untrained network, to the last sound one; NaN where nothing
        was measured. Losses;
        ``empty_fraction``, ``largest_relative_size`` and ``effective_clusters`` by plain inference
        on all training samples (first and last entry); the same with ``_unsettled`` before the
        centroids settled (last entry), and with ``_balanced`` and ``_plain``
        by the labels that the epoch's views got after and before balancing;
        ``relabelled_fraction``, the share of labels that balancing changed; and
        ``teacher_entropy`` and ``student_entropy`` of the softmaxes, over log K: 1 says nothing.
    resolved_params_ : dict
        Every parameter with "auto" replaced, the seed that was drawn, and what follows from them;
        those of states (``checkpoint_dir`` and the like) are not among them.
    sample_names_ : ndarray of shape (n_samples,), str
        The file of each label; only after fitting a folder or a list of files.
    skipped_ : list of Skipped
        Index, name and reason of each training image that could not be used (``on_error="skip"``).
    ignored_files_ : ndarray of str
        What else a folder holds: hidden files and folders, files that no image ends like; only
        after fitting a folder.
    n_features_in_ : int
        Features of the rows; only after fitting rows.
    image_shape_ : tuple of int
        Typical (height, width) of the training images; only after fitting images.
    n_channels_ : int
        Channels of the images; only after fitting images.

    Notes
    -----
    All inference is the teacher's, in evaluation mode, without balancing.
    The method is described in [1]_.

    References
    ----------
    .. [1] I. Maniadis Metaxas, G. Tzimiropoulos, I. Patras, "Efficient Unsupervised Visual
       Representation Learning with Explicit Cluster Balancing", ECCV 2024, arXiv:2407.11168.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_excb import ExCBEstimator
    >>> images = load_digits().images[:200] / 16
    >>> excb = ExCBEstimator(K=10, epochs=1, random_state=0).fit(images)
    >>> excb.predict(images).shape, excb.transform(images).shape
    ((200,), (200, 256))
    """

    # of no use to a pipeline or a search, which would else have to be told where they go
    __metadata_request__predict = {  # noqa: RUF012 - as scikit-learn reads it
        "n_clusters": metadata_routing.UNUSED,
        "out": metadata_routing.UNUSED,
    }
    __metadata_request__transform = {"out": metadata_routing.UNUSED}  # noqa: RUF012

    def __init__(
        self,
        K: int | str = "auto",
        *,
        backbone: str | nn.Module = "auto",
        pretrained: bool | str | os.PathLike[str] = False,
        freeze_backbone: bool = False,
        embedding: str = "projection",
        image_size: int | str = "auto",
        local_size: int | str = "auto",
        n_global: int = 2,
        n_local: int | str = "auto",
        n_channels: int | str = "auto",
        flip: float | str = "auto",
        epochs: int | str = "auto",
        batch_size: int | str = "auto",
        steps_per_epoch: int | str = "auto",
        micro_batch: int | str | None = None,
        precision: str = "auto",
        compile: bool = False,
        head_width: int | str = "auto",
        optimizer: str = "auto",
        learning_rate: float | str = "auto",
        weight_decay: float | tuple[float, float] | str = "auto",
        warmup_epochs: float | str = "auto",
        teacher_momentum: float | str = "auto",
        size_momentum: float | str = "auto",
        teacher_temperature: float | tuple[float, float] = 0.04,
        student_temperature: float = 0.1,
        balancing: str = "linear",
        count_labels: str = "balanced",
        local_in_loss_h: bool = True,
        settle_passes: int | str = "auto",
        on_error: str = "raise",
        n_jobs: int | str | None = "auto",
        device: str | torch.device = "auto",
        devices: int | str = "auto",
        random_state: int | np.random.RandomState | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int | str = "auto",
        n_checkpoints: int = 2,
        resume: bool | str = "auto",
        warm_start: bool = False,
        verbose: int = 0,
    ) -> None:
        self.K = K
        self.backbone = backbone
        self.pretrained = pretrained
        self.freeze_backbone = freeze_backbone
        self.embedding = embedding
        self.image_size = image_size
        self.local_size = local_size
        self.n_global = n_global
        self.n_local = n_local
        self.n_channels = n_channels
        self.flip = flip
        self.epochs = epochs
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.micro_batch = micro_batch
        self.precision = precision
        self.compile = compile
        self.head_width = head_width
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.teacher_momentum = teacher_momentum
        self.size_momentum = size_momentum
        self.teacher_temperature = teacher_temperature
        self.student_temperature = student_temperature
        self.balancing = balancing
        self.count_labels = count_labels
        self.local_in_loss_h = local_in_loss_h
        self.settle_passes = settle_passes
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.device = device
        self.devices = devices
        self.random_state = random_state
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_every = checkpoint_every
        self.n_checkpoints = n_checkpoints
        self.resume = resume
        self.warm_start = warm_start
        self.verbose = verbose

    @classmethod
    def from_recipe(cls, name: str, **params: Any) -> Self:
        """Build an estimator with the parameters of a recipe.

        Parameters
        ----------
        name : {"tiny", "small", "paper-resnet50", "paper-vit-s16"}
            "tiny" is for images of 8 to 32 pixels, or a first look at larger ones, and takes a CPU
            minutes; "small" is meant for 10,000 photos and more; the others are as
            published, for ImageNet. See :mod:`sklearn_excb.settings.recipes`.
        **params
            Parameters that replace the recipe's or add to them.

        Raises
        ------
        ValueError
            If there is no such recipe.
        """
        return cls(**(recipe(name) | params))

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn clusters and embeddings.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            Images: an array or tensor (n, h, w) gray or (n, h, w, c), of uint8, uint16 or floats
            in [0, 1]; a list of arrays or PIL images of any size; a folder (searched through, in
            natural order, the files of a folder before the folders in it, no class folders needed:
            ``sample_names_`` names the files); a tar archive, such as WebDataset's; a list of files
            or of archives; or a data set with ``__len__`` and ``__getitem__`` whose items are an
            image, a tuple that begins with one, or a dict with an entry "image" (torchvision,
            Hugging Face). An item may also be the bytes of a file, or an open file. What can only
            be iterated (an ``IterableDataset``, a generator) is read once, and its images are kept
            in memory as they come, unless ``steps_per_epoch`` is a number. Or feature vectors:
            2-D rows (n, d), of features in one unit; put a StandardScaler before where they have
            several, as for k-means.
        y : ignored
            For the conventions of scikit-learn.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used; ``ImageError``, one of its kind, names the
            image.
        FloatingPointError
            If the training diverges in its first epoch; ``DivergedError``, one of its kind, has the
            rows of the batch in which it showed. Whatever is raised, what was learned before is
            kept.
        RankError
            If another process of the fit has failed or is not at the same fit; a RuntimeError.
        OSError
            If ``checkpoint_dir`` cannot be written to at the start; ``BlockingIOError``, one of its
            kind, if another fit is at work there.
        KeyboardInterrupt
            If Ctrl-C was pressed while it trained: after the step that was under way the training
            ends, and the images are assigned, so that the estimator is fitted when this is raised.
            A second Ctrl-C leaves at once, with what was learned before.

        Warns
        -----
        CollapseWarning
            If the clusters collapse, with the parameter to change.
        DivergenceWarning
            If the training diverges after its first epoch, with the epoch at which it then stopped.
            Both are scikit-learn's ConvergenceWarning.
        DurationWarning
            If a CPU will need more than an hour, and what would take less.
        MemoryWarning
            If the device has less memory left than the fit will take (:meth:`estimate_memory`).
        SkippedImageWarning
            If images were skipped (``on_error="skip"``).
        UnreadPicturesWarning
            If a folder has pictures of kinds that are not read, such as HEIC.
        CheckpointWarning
            If a state could not be written, in which case the fit goes on; or not be read, in which
            case it goes on from the one before.
        """
        parameters = self.get_params(deep=False)
        check_parameters(parameters)
        ranks, device = join(self.device, self.devices)
        seed = _seed(self.random_state)
        if self.steps_per_epoch != "auto":
            return self._fit_stream(X, parameters, ranks, device, seed)
        before = self._fit_before()
        with _unchanged_on_error(self):
            with ranks.together():
                source = self._open(X, fitting=True)
                n_jobs = number_of_jobs(self.n_jobs, source)
                progress = bool(self.verbose) and ranks.first
                usable = drop_unusable(source, n_jobs, progress=progress)
            skipped_before = skipped_of(source)
            warn_skipped(skipped_before, len(source))
            how: dict[str, Any] = {
                "seed": seed,
                "device": device,
                "kept": None if before is None else before.state,
                "fitted_before": before is not None,
            }
            n_devices = number_of_devices(self.devices, device) if ranks.count == 1 else 1
            if n_devices > 1:
                fitted = fit_on(n_devices, usable, parameters, **how)
            else:
                fitted = fit_source(usable, parameters, **how, ranks=ranks)
            if not isinstance(source, Rows):
                self.image_shape_ = fitted.image_shape
                self.n_channels_ = source.n_channels
            if source.names is not None:
                self.sample_names_ = np.array(source.names)
            if isinstance(source, ItemImages) and source.ignored is not None:
                self.ignored_files_ = np.array(source.ignored, dtype=str)
            self.skipped_ = skipped_of(source)
            fitted = replace(fitted, labels=expand_labels(fitted.labels, usable, source))
            run = {
                "n_jobs": n_jobs,
                "device": str(device),
                "devices": max(ranks.count, n_devices),
                "steps_per_epoch": fitted.settings.steps_per_epoch(len(usable)),
                "random_state": fitted.seed,
            }
            self._set_fitted(fitted, _resolved(parameters, run, fitted.settings))
        if len(self.skipped_) > len(skipped_before):  # while it was fitted
            warn_skipped(self.skipped_, len(source))
        self._interrupt_if_stopped()
        return self

    def _interrupt_if_stopped(self) -> None:
        """Raise what Ctrl-C would have, now that the estimator is fitted."""
        if self._fitted.stopped:
            raise KeyboardInterrupt(
                f"The training was stopped in epoch {self.history_[-1]['epoch']} of "
                f"{self._fitted.settings.epochs}. The estimator is fitted as it was then."
            )

    def _fit_stream(
        self, X: Any, parameters: dict[str, Any], ranks: Ranks, device: torch.device, seed: int
    ) -> Self:
        """Fit a stream of which nothing is kept but a sample."""
        if not is_stream(X):
            raise ValueError(
                "steps_per_epoch is for what can only be iterated, and X has a length: an epoch is "
                'all of it. Leave steps_per_epoch="auto".'
            )
        if ranks.count == 1 and self.devices not in ("auto", 1):
            raise ValueError(
                "With steps_per_epoch a fit starts no processes: each device needs a stream of its "
                "own. Start them with torchrun, or set devices=1."
            )
        self._need_trained_backbone("steps_per_epoch")
        before = self._fit_before()
        skipped: list[Skipped] = []
        n_read = 0
        n_jobs = effective_n_jobs(1 if isinstance(self.n_jobs, str) else self.n_jobs)
        with _unchanged_on_error(self):
            for name in _INPUT_FACTS:
                self.__dict__.pop(name, None)

            def open_part(part: StreamPart) -> Source:
                nonlocal n_read
                n_read += len(part)
                wanted = getattr(self, "n_channels_", self.n_channels)
                channels = None if isinstance(wanted, str) else wanted
                source = open_source(part, channels, self.on_error)
                try:
                    usable = drop_unusable(source, n_jobs)
                finally:
                    skipped.extend(skipped_of(source))
                self.n_channels_ = source.n_channels
                return usable

            fitted = fit_stream(
                X,
                parameters,
                open_part,
                n_jobs=n_jobs,
                seed=seed,
                device=device,
                kept=None if before is None else before.state,
                fitted_before=before is not None,
                ranks=ranks,
            )
            self.image_shape_ = fitted.image_shape
            self.skipped_ = skipped
            run = {
                "n_jobs": n_jobs,
                "device": str(device),
                "devices": ranks.count,
                "random_state": fitted.seed,
            }
            self._set_fitted(fitted, _resolved(parameters, run, fitted.settings))
        warn_skipped(skipped, n_read, "were left out")
        self._interrupt_if_stopped()
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Learn from what has just come, and go on with what was learned before.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            As in :meth:`fit`. Each call takes every sample once, in steps of at most
            ``batch_size``. The first one needs at least K: the centroids start from them.
        y : ignored
            For the conventions of scikit-learn.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As in :meth:`fit`; also if parameters have changed since the first call, if the first
            call has fewer than K samples, and with ``checkpoint_dir`` or several ``devices``.
        FloatingPointError
            ``DivergedError``, if loss or gradients are not finite. Whatever is raised, the call is
            undone: it was learned from as a whole or not at all.

        Notes
        -----
        The method is online: cluster sizes and the teacher are running means. Without a known end
        the learning rate stays as it is after the warm-up, and so do weight decay and the momentum
        of the teacher. "auto" is what it would be for a collection of 19.5 K samples, the paper's
        number; as many are an epoch of ``history_``. ``K="auto"`` goes by the samples of the first
        call. ``epochs`` are of :meth:`fit`.

        A stream may change: half of each step are samples that came before, drawn at random from
        up to 19.5 K that are kept, at most 256 MB of them, each of all that came as likely as any
        other. They are in pickles too. On them the centroids settle (``settle_passes``) when after
        a call something is first asked of the estimator, which takes a pass over them.

        There are no ``labels_`` of training samples: use :meth:`predict`. After :meth:`fit`,
        :meth:`load` or unpickling it goes on from there; the optimiser begins anew unless
        the fit had ``warm_start=True``, or it was a pickle. A call of :meth:`fit` begins anew.
        """
        parameters = self.get_params(deep=False)
        check_parameters(parameters)
        device = self._of_partial_fit()
        fitted: Fitted | None = self.__dict__.get("_fitted")
        online: OnlineFit | None = self.__dict__.get("_online")
        with _unchanged_on_error(self):
            source = self._open(X, fitting=fitted is None and online is None)
            n_jobs = number_of_jobs(self.n_jobs, source)
            usable = drop_unusable(source, n_jobs)
            if online is not None:
                online.check(parameters)
            elif fitted is not None:
                online = OnlineFit.after(fitted, parameters, device=device)
            else:
                seed = _seed(self.random_state)
                online = OnlineFit.begin(usable, parameters, seed=seed, device=device)
                if not isinstance(source, Rows):
                    self.image_shape_ = online.image_shape
                    self.n_channels_ = source.n_channels
            online.learn(usable, n_jobs=n_jobs, device=device)
            self.skipped_ = skipped_of(source)
            self._online = online
            run = {
                "n_jobs": n_jobs,
                "device": str(online.device),
                "devices": 1,
                "steps_per_epoch": online.plan.steps_per_epoch,
                "random_state": online.seed,
            }
            self.resolved_params_ = _resolved(parameters, run, online.settings)
            self.history_ = online.entries()
            self._linkage = None
            for made_when_asked_for in ("_fitted", "cluster_centers_"):
                self.__dict__.pop(made_when_asked_for, None)
        for of_fit in ("sample_names_", "ignored_files_"):
            self.__dict__.pop(of_fit, None)
        warn_skipped(self.skipped_, len(source))
        return self

    def _fit_before(self) -> Fitted | None:
        """Fit that a warm start goes on from; after partial_fit a fit begins anew."""
        begins = not self.warm_start or "_online" in self.__dict__
        return None if begins else self.__dict__.get("_fitted")

    def _of_partial_fit(self) -> torch.device:
        """Device of partial_fit, which is of one process and writes no states."""
        if self.checkpoint_dir is not None:
            raise ValueError(
                "partial_fit writes no states to checkpoint_dir: a stream cannot be read again. "
                "Use save, or pickle the estimator, between two calls."
            )
        self._need_trained_backbone("partial_fit", self.__dict__.get("_fitted"))
        ranks, device = join(self.device, self.devices)
        if ranks.count > 1 or (
            self.devices != "auto" and number_of_devices(self.devices, device) > 1
        ):
            raise ValueError("partial_fit is of one process: set devices=1.")
        if "published" in self.__dict__.get("resolved_params_", {}):
            raise ValueError(
                "partial_fit does not go on from networks of others: they come without what trains "
                "them. Begin with fit or a new estimator."
            )
        return device

    def _need_trained_backbone(self, wanted: str, before: Fitted | None = None) -> None:
        """Refuse a frozen backbone, now or in the fit gone on with, where no features are kept."""
        if self.freeze_backbone or (before is not None and before.settings.freeze_backbone):
            raise ValueError(
                f"{wanted} and freeze_backbone=True do not go together: features of a stream are "
                "not kept. Compute them with the backbone, and pass them as 2-D rows."
            )

    def estimate_memory(self, X: Any) -> MemoryEstimate:
        """Estimate what :meth:`fit` would take in memory, a component at a time, without fitting.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            As in :meth:`fit`; a generator is used up by it. For images that are elsewhere, an array
            that takes no memory itself will do: ``np.broadcast_to(np.uint8(0), (n, h, w, 3))``.

        Returns
        -------
        MemoryEstimate
            ``print`` it, or see its ``peak``, ``components``, ``phases`` and ``needed``, in bytes.
            Where several ``devices`` fit together it is of each of them.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used, or the backbone cannot be followed without
            running it.

        Notes
        -----
        Two steps of training run on fake tensors, which hold nothing, with every tensor counted
        while it lives; the views of five images are made. A backbone of your own must not keep what
        it computes outside of itself (in a cache, say): it would keep fake tensors. :meth:`fit`
        estimates by itself only with backbones that have a name.
        """
        parameters = self.get_params(deep=False)
        check_parameters(parameters)
        source = type(self)(**parameters)._open(X, fitting=True)
        usable = drop_unusable(source, number_of_jobs(self.n_jobs, source))
        device, place = resolve_device(self.device), place_of(os.environ)
        if place is not None and self.devices != 1:
            n_devices = place.count
        else:
            n_devices = number_of_devices(self.devices, device)
        return estimate_memory_of(usable, parameters, device, n_devices)

    def dry_run(self, X: Any) -> DryRun:
        """Take a few steps of :meth:`fit`, and tell what it would do and take; nothing changes.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            As in :meth:`fit`; a generator is used up by it.

        Returns
        -------
        DryRun
            ``print`` it: parameters with "auto" replaced, memory of a device, time of a step, how
            much of it is waiting for images, and the time to the end. A state in ``checkpoint_dir``
            counts as done.

        Raises
        ------
        ValueError
            As in :meth:`fit`.

        Notes
        -----
        Up to twelve steps are taken, two at the least, for half a minute; with a launcher (see
        ``devices``) all processes have to call it. Where :meth:`fit` would start processes itself,
        one takes its share of each batch, and their messages are not in the times. With
        ``on_error="skip"`` a thousand of the images are tried beforehand.
        """
        from sklearn_excb.fitting.dry_run import dry_run

        parameters = self.get_params(deep=False)
        check_parameters(parameters)
        if self.steps_per_epoch != "auto":
            raise ValueError(
                "A stream with steps_per_epoch has no dry run: it would be read to its end. "
                'Pass a list of its first images, with steps_per_epoch="auto".'
            )
        ranks, device = join(self.device, self.devices)
        with ranks.together():
            source = type(self)(**parameters)._open(X, fitting=True)
            n_jobs = number_of_jobs(self.n_jobs, source)
            usable = drop_unusable(source, n_jobs, most=_TRIED)
        before = self._fit_before()
        return dry_run(
            usable,
            parameters,
            seed=_seed(self.random_state),
            device=device,
            kept=None if before is None else before.state,
            fitted_before=before is not None,
            ranks=ranks,
            n_devices=number_of_devices(self.devices, device) if ranks.count == 1 else 1,
        )

    def predict(
        self, X: Any, *, n_clusters: int | None = None, out: npt.NDArray[Any] | None = None
    ) -> npt.NDArray[np.int64]:
        """Cluster of each sample: the centroid most similar to its projection.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            As in :meth:`fit`; what can only be iterated is not kept.
        n_clusters : int, optional
            Give the groups, as many as this, into which the K clusters merge (``linkage_``). Those
            of more are parts of those of fewer; they are numbered by the lowest cluster in each.
        out : ndarray of shape (n_samples,), int64, optional
            Where to write, a memory-mapped file perhaps: no more than a batch is then in memory.

        Returns
        -------
        ndarray of shape (n_samples,), int64
            In 0..K-1, or 0..n_clusters-1; -1 for images that were skipped. Balancing is a device
            of training and takes no part. ``out``, if it was given.

        Raises
        ------
        ValueError
            If ``n_clusters`` is no integer from 1 to K.

        Warns
        -----
        SkippedImageWarning
            If images were skipped (``on_error="skip"``).
        UnreadPicturesWarning
            If a folder has pictures of kinds that are not read, such as HEIC.
        """
        check_is_fitted(self)
        self._need_clusters("predict")
        groups = None
        if n_clusters is not None:
            check_n_groups(n_clusters, self._fitted.settings.K, "n_clusters")
            groups = cut(self.linkage_, n_clusters)

        def assigned(source: Source, out: npt.NDArray[Any] | None) -> npt.NDArray[np.int64]:
            found = check_out(out, (len(source),), np.int64)
            self._infer(
                source,
                np.arange(len(source)),
                lambda teacher, inputs, rows: assign(teacher, inputs, groups, out=found[rows]),
            )
            return found

        return self._apply(assigned, X, out, fill=-1)

    def transform(self, X: Any, *, out: npt.NDArray[Any] | None = None) -> npt.NDArray[np.float32]:
        """Embed samples.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            As in :meth:`fit`; what can only be iterated is not kept.
        out : ndarray of shape (n_samples, d), float32, optional
            Where to write, a memory-mapped file perhaps: no more than a batch is then in memory.

        Returns
        -------
        ndarray of shape (n_samples, d), float32
            What ``embedding`` names: d = 256, the number of the backbone's features, or K. NaN for
            images that were skipped. ``out``, if it was given, or in what ``set_output`` asks for.

        Warns
        -----
        SkippedImageWarning
            If images were skipped (``on_error="skip"``).
        UnreadPicturesWarning
            If a folder has pictures of kinds that are not read, such as HEIC.
        """

        def embedded(source: Source, out: npt.NDArray[Any] | None) -> npt.NDArray[np.float32]:
            found = check_out(out, (len(source), self._n_features_out), np.float32)
            wanted = cast(Embedding, self.embedding)
            self._infer(
                source,
                np.arange(len(source)),
                lambda teacher, inputs, rows: embed(teacher, inputs, wanted, out=found[rows]),
            )
            return found

        return self._apply(embedded, X, out, fill=np.nan)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a folder: safetensors and JSON, nothing executable.

        Parameters
        ----------
        path : str or path-like
            Folder; made if it is not there. What is in it loads on any device. ``checkpoint_dir``
            and what goes with it are not saved.
        """
        check_is_fitted(self)
        facts = {name: self.__dict__[name] for name in _INPUT_FACTS if name in self.__dict__}
        parameters = self.get_params(deep=False)
        parameters = {
            n: value for n, value in parameters.items() if n not in _CHECKPOINT_PARAMETERS
        }
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
        unknown = sorted(parameters.keys() - cls().get_params(deep=False))
        if unknown:
            raise ValueError(
                f"{path} has parameters that this {cls.__name__} does not know: "
                f"{', '.join(unknown)}. Load it with the version that wrote it."
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
            "random_state": _seed(estimator.random_state),
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

    @property
    def labels_(self) -> npt.NDArray[np.int64]:
        """Clusters of the training samples; see the class."""
        return self._of_training("labels_")

    @property
    def relative_cluster_sizes_(self) -> npt.NDArray[np.float64]:
        """Sizes of the clusters by ``labels_``; see the class."""
        labels, K = self._of_training("relative_cluster_sizes_"), self._fitted.settings.K
        labelled = labels[labels >= 0]
        counts = np.bincount(labelled, minlength=K).astype(np.float64)
        return counts * (K / len(labelled))

    def _of_training(self, name: str) -> npt.NDArray[np.int64]:
        """Labels of the training samples, needed for an attribute of that name."""
        check_is_fitted(self)
        if not len(self._fitted.labels):
            raise NotFittedError(
                f"This {type(self).__name__} has no {name}: it comes from a checkpoint or "
                "from partial_fit, without training samples. Use predict(X)."
            )
        return self._fitted.labels

    def _need_clusters(self, wanted: str) -> None:
        """Refuse what a backbone alone cannot give."""
        if not self._fitted.settings.K:
            raise NotFittedError(
                f"This {type(self).__name__} has no clusters, which {wanted} needs: it comes from "
                "a checkpoint of a backbone alone. Read the full checkpoint, or use "
                'transform(X) with embedding="backbone".'
            )

    @cached_property
    def _fitted(self) -> Fitted:
        """What was learned: assigned by a fit, and after partial_fit made when it is asked for."""
        return self._online.fitted()

    @cached_property
    def cluster_centers_(self) -> npt.NDArray[np.float32]:
        """Unit centroids; see the class."""
        check_is_fitted(self)
        self._need_clusters("cluster_centers_")
        return self._fitted.teacher.centroids.unit().detach().cpu().numpy()

    @property
    def cluster_gains_(self) -> npt.NDArray[np.float32]:
        """Factors of the similarities; see the class."""
        check_is_fitted(self)
        gain = self._fitted.teacher.centroids.gain
        if gain is None:
            raise AttributeError(f"No cluster of this {type(self).__name__} has a gain of its own.")
        return gain.cpu().numpy()

    @property
    def linkage_(self) -> npt.NDArray[np.float64]:
        """Tree of the clusters; see the class."""
        check_is_fitted(self)
        self._need_clusters("linkage_")
        if self._linkage is None:
            places = self._fitted.group_centroids
            if places is None:  # of a checkpoint
                places = self.cluster_centers_
            has_samples = len(self._fitted.labels) > 0
            sizes = self.relative_cluster_sizes_ if has_samples else np.ones(len(places))
            self._linkage = merge_tree(places, sizes)
        return self._linkage

    def _set_fitted(self, fitted: Fitted, resolved: dict[str, Any]) -> None:
        """Assign everything learned, together."""
        self.__dict__.pop("_online", None)
        self._fitted = fitted
        self._linkage: npt.NDArray[np.float64] | None = None
        self.resolved_params_ = resolved
        self.history_ = fitted.history
        self.__dict__.pop("cluster_centers_", None)
        if fitted.settings.K:
            self.cluster_centers_ = fitted.teacher.centroids.unit().detach().cpu().numpy()

    def _open(self, X: Any, *, fitting: bool) -> Source:
        """Open the samples; those of inference have to be of the kind that was fitted."""
        holds_rows = are_rows(X)
        if fitting:
            for name in _INPUT_FACTS:
                self.__dict__.pop(name, None)
        elif holds_rows == hasattr(self, "image_shape_"):
            if holds_rows:
                came, was = "2-D rows", "images"
                hint = rows_for_images(X, self.image_shape_, self.n_channels_)
            else:
                came, was = "images", "2-D rows"
                hint = images_for_rows(X, self.n_features_in_)
            raise ValueError(
                f"X holds {came}, but this {type(self).__name__} was fitted on {was}. {hint}"
            )
        if holds_rows:
            check_columns(X)
            types, least = [np.float32, np.float64], 2 if fitting else 1
            return Rows(
                validate_data(self, X, reset=fitting, dtype=types, ensure_min_samples=least)
            )
        wanted = self.n_channels if fitting else self.n_channels_
        if not (fitting and wanted == 1):
            check_several(X, None if fitting else self.image_shape_[1])
        source = open_source(X, None if isinstance(wanted, str) else wanted, self.on_error)
        warn_unread(source)
        if wanted not in ("auto", source.n_channels):
            name = type(self).__name__
            said = "n_channels is" if fitting else f"this {name} was fitted on images with"
            hint = "" if fitting else one_image_for_several(X, self.n_channels_)
            raise ValueError(
                f"X holds images with {source.n_channels} channels, but {said} {wanted}.{hint}"
            )
        return source

    def _apply(
        self,
        function: Callable[[Source, npt.NDArray[Any] | None], npt.NDArray[Any]],
        X: Any,
        out: npt.NDArray[Any] | None,
        *,
        fill: float,
    ) -> npt.NDArray[Any]:
        """Results of a function of the opened samples, with ``fill`` where one was skipped."""
        check_is_fitted(self)
        check_parameters(self.get_params(deep=False))
        if is_stream(X):
            found, skipped = infer_stream(
                lambda part: self._open(part, fitting=False), function, X, out
            )
        else:
            source = self._open(X, fitting=False)
            found, skipped = function(source, out), skipped_of(source)
        return fill_skipped(found, skipped, fill=fill)

    def _open_indexed(self, X: Any) -> Source:
        """Open samples of which any can be asked for."""
        check_is_fitted(self)
        check_parameters(self.get_params(deep=False))
        if is_stream(X):
            raise ValueError(
                "X can only be iterated: it cannot be gone on with where it stopped. Pass a "
                "folder, a list of files or a data set with a length, or use transform."
            )
        return self._open(X, fitting=False)

    def _results_of(
        self, source: Source, rows: npt.NDArray[np.int64], of: str
    ) -> tuple[npt.NDArray[Any], list[Skipped]]:
        """Labels or embeddings of some rows, and which of them were skipped."""
        if of == "predict":
            self._need_clusters("predict")
            found: npt.NDArray[Any] = np.empty(len(rows), np.int64)
        else:
            found = np.empty((len(rows), self._n_features_out), np.float32)
        wanted = cast(Embedding, self.embedding)

        def infer(teacher: ClusterNetwork, inputs: Iterator[Tensor], some: slice) -> None:
            if of == "predict":
                assign(teacher, inputs, out=found[some])
            else:
                embed(teacher, inputs, wanted, out=found[some])

        self._infer(source, rows, infer)
        within = {int(row): place for place, row in enumerate(rows)}
        skipped = [image for image in skipped_of(source) if image.index in within]
        found[[within[image.index] for image in skipped]] = -1 if of == "predict" else np.nan
        return found, skipped

    def _infer(
        self,
        source: Source,
        rows: npt.NDArray[np.int64],
        work: Callable[[ClusterNetwork, Iterator[Tensor], slice], None],
    ) -> None:
        """Do some work with the teacher and the prepared batches of rows, on every device."""
        devices = self._inference_devices(source)
        n_jobs = max(1, number_of_jobs(self.n_jobs, source) // len(devices))
        size = self._fitted.settings.inference_batch

        def infer(teacher: ClusterNetwork, device: torch.device, some: slice) -> None:
            inputs = inference_inputs(
                source,
                self._fitted.recipe,
                batch_size=size,
                n_jobs=n_jobs,
                device=device,
                sample=rows[some],
            )
            work(teacher, inputs, some)

        split_among_devices(devices, self._fitted.teacher, len(rows), size, infer)

    def _inference_devices(self, source: Source) -> list[torch.device]:
        """Return every GPU of this machine, where one process may use them; else one device.

        A data set of the user's may want to be read by one thread.
        """
        device = self._inference_device()
        of_one = device.type != "cuda" or device.index is not None or self.devices == 1
        alone = isinstance(source, ItemImages) and not source.reads_in_parallel
        if of_one or alone or place_of(os.environ) is not None:
            return [device]
        n_there = torch.cuda.device_count()
        n = n_there if self.devices == "auto" else min(int(self.devices), n_there)
        return [torch.device("cuda", number) for number in range(n)]

    def _inference_device(self) -> torch.device:
        """Return the device asked for; where it is missing, the CPU: it predicts the same."""
        try:
            return resolve_device(self.device)
        except ValueError as error:
            warn_caller(f"{error} Going on with the CPU.", DeviceWarning)
            return torch.device("cpu")

    @property
    def _n_features_out(self) -> int:
        """Columns of :meth:`transform`, for the names of features."""
        fitted = self._fitted
        if self.embedding == "backbone":
            return fitted.n_backbone_features
        self._need_clusters(f"embedding={self.embedding!r}")
        K, D = self.cluster_centers_.shape
        return K if self.embedding == "similarity" else D

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; parameters that came after it was pickled have their defaults."""
        parameters = inspect.signature(type(self)).parameters.values()
        defaults = {of.name: of.default for of in parameters if of.default is not of.empty}
        super().__setstate__(defaults | state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _resolved(
    parameters: dict[str, Any], run: dict[str, Any], settings: Settings
) -> dict[str, Any]:
    """Every parameter that is of the result, with what "auto" became."""
    of_result = {
        name: value for name, value in parameters.items() if name not in _CHECKPOINT_PARAMETERS
    }
    return of_result | run | settings.as_dict()


def _seed(random_state: Any) -> int:
    """Seed of a fit; None draws one from the system, leaving global state alone."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, (int, np.integer)):
        check_random_state(random_state)  # refuses what scikit-learn refuses
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))


@contextmanager
def _unchanged_on_error(estimator: ExCBEstimator) -> Iterator[None]:
    """Put every attribute back if the body fails: a failed fit loses nothing learned before."""
    before = dict(estimator.__dict__)
    try:
        yield
    except BaseException:
        estimator.__dict__.clear()
        estimator.__dict__.update(before)
        raise
