"""The estimator: its parameters and scikit-learn conventions.

The methods are in mixins, one for each use: :mod:`sklearn_excb.fitting.mixin` (``fit``),
:mod:`sklearn_excb.fitting.planning` (``dry_run``), :mod:`sklearn_excb.inference.mixin`
(``predict``, ``transform``), :mod:`sklearn_excb.inference.learned` (learned attributes) and
:mod:`sklearn_excb.saving.mixin` (``save``, ``load``, exports).
"""

from __future__ import annotations

import inspect
import os
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin
from torch import nn

from sklearn_excb.fitting.mixin import FittingMixin
from sklearn_excb.fitting.planning import PlanningMixin
from sklearn_excb.inference.mixin import InferenceMixin
from sklearn_excb.saving.mixin import PersistenceMixin
from sklearn_excb.settings.parameter_names import NamedParameters, with_names_checked
from sklearn_excb.settings.recipes import recipe


class ExCBEstimator(
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    FittingMixin,
    PlanningMixin,
    InferenceMixin,
    PersistenceMixin,
    NamedParameters,
    BaseEstimator,
):
    """Cluster images, and learn their embeddings, without labels, by Explicit Cluster Balancing.

    Parameters
    ----------
    K : int or "auto", default="auto"
        Number of clusters, called ``n_clusters`` in KMeans (here, that name is an error that says
        so). "auto" keeps the paper's ratio on ImageNet, 19.5 images per cluster.
    backbone : str or nn.Module, default="auto"
        Network f: "cnn" (a small network for images below 64 pixels), the name of a timm model, the
        name of a torchvision model as in "torchvision:resnet50", or a module that maps images
        (n, c, h, w), or rows (n, d), to features (n, d'). "auto" depends on the size and number of
        the images. For rows, "auto" is "identity", where only a linear projector learns, and "mlp"
        adds hidden layers before the projector.
    pretrained : bool or path-like, default=False
        Whether the backbone starts with the default weights of timm or torchvision, from their
        cache or the internet, or the path of a file with such weights.
        ``backbone="resnet18.a1_in1k"`` selects specific weights. ``backbone="auto"`` is then never
        "cnn", which has no pretrained weights.
    freeze_backbone : bool, default=False
        Whether the pretrained weights, or the weights of your own module, stay fixed. The features
        of the images are then computed once. A linear projector, a predictor and the centroids
        learn from views of the features, made with noise as for rows, instead of crops. This takes
        minutes for thousands of photos on a CPU. ``image_size="auto"`` is then 224 pixels, or four
        times the side of the images if that is smaller.
    embedding : {"projection", "backbone", "similarity"}, default="projection"
        Output of :meth:`transform`: "projection" is h(f(x)) as unit rows, for which
        ``argmax(T @ cluster_centers_.T)`` is :meth:`predict`; "backbone" is f(x), for probes and
        neighbours (rows without a backbone are centred and scaled); "similarity" is the cosine
        similarity to each centroid. The parameter may be changed after fit.
    image_size : int or "auto", default="auto"
        Side of the global views in pixels. "auto" is the side of the images, up to a limit that
        grows with their number: 80 pixels at 10,000 images and 224 at ImageNet's number. The limit
        is 32 pixels for "cnn" below 10,000 images, and 64 for other networks below 5,000.
    local_size : int or "auto", default="auto"
        Side of the local views in pixels.
    n_global : int, default=2
        Number of global views per image, at least 2.
    n_local : int or "auto", default="auto"
        Number of local views per image.
    n_channels : int or "auto", default="auto"
        Number of channels of the images. Pictures and files are converted to 1 (gray) or 3
        channels. "auto" is the number of channels of the array, and 3 for files.
    flip : float or "auto", default="auto"
        Probability that a view is mirrored. "auto" is 0.5 for images with three channels and 0 for
        others (characters, scans, spectrograms), where left and right often carry meaning.
    views : {"crops", "neighbours", "noise"} or "auto", default="auto"
        Kind of the views. A backbone that is trained sees "crops" of images. The other kinds are
        for rows, and for the features of a frozen backbone. With "neighbours", the teacher sees
        averages over the neighbourhood of a row, and the student learns to find the same cluster
        from the row alone; see :mod:`sklearn_excb.views.neighbor_views` ("neighbors" is the same).
        With "noise", views are
        the row with added noise. "auto" is "neighbours" from 30 rows per cluster and 200 rows in
        all on, up to 200,000 rows. It is "noise" otherwise, for streams, :meth:`partial_fit` and
        ``backbone="mlp"``.
    epochs : int or "auto", default="auto"
        Number of passes over the images. 0 leaves the network untrained and only computes the first
        centroids.
    batch_size : int or "auto", default="auto"
        Number of images per step, at most ``n_samples``. The last partial batch of an epoch is
        dropped.
    steps_per_epoch : int or "auto", default="auto"
        Number of batches per epoch of a stream, which can only be iterated. "auto" reads the stream
        once and keeps its images in memory. With a number, fit keeps only a sample of the images,
        reads this number of batches per epoch in the order of the stream, and iterates the stream
        again when it ends. Each process of a launcher reads its own stream. See :meth:`fit`.
    micro_batch : int, None or "auto", default=None
        Maximum number of images that go through the networks at once. To save memory, a step is
        split into parts of at most this size, whose gradients add up. The split changes the
        statistics of BatchNorm, which are computed per part (every predictor begins with
        BatchNorm), the draws of dropout and, with ``balancing="sinkhorn"``, the targets, which are
        also computed per part. None is the whole batch. "auto" is the whole batch if it fits the
        device, and else the largest of its halves, quarters, ... that fits, by
        :meth:`estimate_memory`.
    precision : {"32", "bf16", "fp16"} or "auto", default="auto"
        Precision of the networks' products in training. Weights, sums, the teacher's similarities
        and all inference are in float32. "auto" is "bf16" if the device multiplies in bfloat16
        (CUDA from compute capability 8 on, CPUs with AVX512-BF16), else "32". It is also "32" on a
        CPU if the views are so small that gradients of convolutions in bfloat16 are undefined.
        "fp16" is for older GPUs: it scales the loss to preserve small gradients, and skips steps in
        which large gradients overflow.
    compile : bool, default=False
        Whether torch.compile compiles the backbone for training. Compilation takes a minute or more
        at the start, and needs a C++ compiler on CPUs. Results differ in rounding.
    head_width : int or "auto", default="auto"
        Number of hidden units of the predictor and the projector. The projector has no hidden layer
        for rows without a backbone and for frozen backbones.
    optimizer : {"sgd", "adamw"} or "auto", default="auto"
        Optimiser. "auto" is "sgd" for backbones with BatchNorm, frozen backbones and rows without a
        backbone, and "adamw" for others.
    learning_rate : float or "auto", default="auto"
        Peak learning rate, reached after the warm-up.
    weight_decay : float, tuple of two float, or "auto", default="auto"
        Weight decay. With two values, it changes from the first to the second during the run, by a
        cosine schedule. Biases and norms are not decayed.
    warmup_epochs : float or "auto", default="auto"
        Number of epochs in which the learning rate rises from 0.
    teacher_momentum : float or "auto", default="auto"
        Momentum m of the teacher's EMA at the start, in [0, 1]. It rises to 1 by a cosine schedule.
    size_momentum : float or "auto", default="auto"
        Momentum m_s of the EMA that measures cluster sizes, in [0, 1).
    size_tolerance : float or "auto", default="auto"
        Factor, at least 1, by which a cluster may be larger or smaller than the mean before the
        balancing acts on it. With 1, as published, all clusters become equally large. With 2,
        clusters keep sizes of their own between half and twice the mean. "auto" is 1, and up to 2
        for views by neighbours if clusters have more than 20 samples. It has no effect on
        "centering", "sinkhorn" and "none".
    teacher_temperature : float or tuple of two float, default=0.04
        Temperature tau_t of the teacher's softmax. With two values, it changes linearly from the
        first to the second during the first tenth of the run.
    student_temperature : float, default=0.1
        Temperature tau_s of the student's softmax.
    balancing : {"linear", "exponential", "centering", "sinkhorn", "none"}, default="linear"
        Method that keeps clusters from collapsing. "linear" is ExCB and "exponential" its
        ablation: two forms of the operator for clusters smaller than 1/K, see
        :func:`sklearn_excb.balancing.balance`. The other methods are for comparison, and change
        nothing else: the centering of DINO, the Sinkhorn-Knopp of SwAV
        (:mod:`sklearn_excb.method.baselines`), or no balancing.
    count_labels : {"balanced", "plain"}, default="balanced"
        Whether cluster sizes are measured from labels after or before balancing. "plain" is for
        comparison: it left 70 to 99 % of the clusters of digits empty (``docs/results.md``).
    local_in_loss_h : bool, default=True
        Whether local views contribute to the projector's half of the loss.
    settle_passes : int or "auto", default="auto"
        Number of passes over the projections of the training images, after training. In these
        passes, the centroids move to where plain inference is balanced. The embeddings do not
        change. 0 leaves the centroids as trained. "auto" is 10, and 0 for the methods of
        ``balancing`` that are for comparison.
    on_error : {"raise", "skip"}, default="raise"
        Handling of files, and items of lists and data sets, that are not usable images. "raise"
        raises an error that names the image. "skip" warns, sets the label to -1 and the embedding
        to NaN, adds an entry to ``skipped_``, and fits the other images as if this one were absent.
    n_jobs : int, None or "auto", default="auto"
        Number of threads that open images. It does not change results. "auto" is one thread for
        arrays and data sets, and one per core, at most 8, for files and lists. -1 is one per core,
        None is 1.
    device : str, torch.device or "auto", default="auto"
        Where the networks run.
    devices : int or "auto", default="auto"
        Number of devices that :meth:`fit` uses. It starts one process per device. Each process
        takes its share of every batch, and the result is that of one device, up to rounding. "auto"
        is every GPU of this machine, unless ``device`` names one of them, and one process on a CPU.
        If a launcher (torchrun, srun, Ray Train, Spark) has started processes that all call fit,
        they fit together; with 1, each of them fits alone. :meth:`predict` and :meth:`transform`
        also use every GPU, up to this number. See ``docs/scaling.md``.
    random_state : int, RandomState or None, default=None
        Seed of all random draws. With an int, fits on a CPU are identical bit for bit (with the
        same packages, number of threads and processor). Global random state does not change.
    checkpoint_dir : str or path-like, optional
        Folder for the checkpoints of the training, created if it does not exist. A fit resumes from
        a checkpoint that it finds there (see ``resume``): after a crash, a kill or a pre-emption,
        the same line of code finishes the run, on a CPU with the result of an uninterrupted run,
        bit for bit. Only one fit at a time can use a folder. See ``docs/reliability.md``.
    checkpoint_every : int or "auto", default="auto"
        Number of steps between two checkpoints; the end of each epoch then has a checkpoint too.
        "auto" writes one at the end of each epoch and ten minutes after the last one, unless
        writing would take more than a twentieth of the time.
    n_checkpoints : int, default=2
        Number of latest checkpoints to keep. ``best.safetensors`` is kept besides: the checkpoint
        with the lowest loss among those at the end of an epoch. :meth:`load` reads any of them.
    resume : {"auto", True, False}, default="auto"
        Whether fit resumes from a checkpoint in ``checkpoint_dir``: "auto" resumes if there is one,
        True requires one, and False requires that there is none.
    warm_start : bool, default=False
        Whether fit continues with the networks, cluster sizes and optimiser of the last fit, or
        from the checkpoint in ``checkpoint_dir``, even if parameters or images have changed.
        ``epochs`` includes the earlier epochs. The training state stays in memory, and in pickles:
        about three times the network. With False, a fit starts anew, and resumes from
        ``checkpoint_dir`` only with the same parameters and images.
    verbose : int, default=0
        Verbosity: 1 shows a progress bar, 0 nothing.

    Attributes
    ----------
    labels_ : ndarray of shape (n_samples,), int64
        Cluster of each training sample, as :meth:`predict` returns it. Some labels in 0..K-1 may
        not occur; -1 marks an image that was skipped. ``labels_`` and ``relative_cluster_sizes_``
        do not exist after :meth:`from_checkpoint`, or :meth:`load` of a checkpoint, which have no
        training samples.
    cluster_centers_ : ndarray of shape (K, D), float32
        Unit centroids in projection space, D = 256.
    cluster_gains_ : ndarray of shape (K,), float32
        Factors that multiply the similarities before the largest is chosen; only after
        :meth:`from_checkpoint`, for networks of DINO in which the factors differ.
    relative_cluster_sizes_ : ndarray of shape (K,), float64
        Relative size N_c K / N of each cluster, where N is the number of samples with a cluster; 1
        is balanced, 0 empty.
    linkage_ : ndarray of shape (K - 1, 4), float64
        Tree of the clusters for ``scipy.cluster.hierarchy`` (``dendrogram``, ``fcluster``).
        :meth:`predict` returns its groups if ``n_groups`` is set. The tree is built on first use,
        by Ward's method on the clusters' means in the backbone's features
        (:func:`sklearn_excb.training.coarse_groups.group_centroids`), weighted by
        ``relative_cluster_sizes_``. Without training samples it is built on the centroids, with
        equal weights.
    history_ : list of dict
        One entry per epoch, from epoch 0, the untrained network, to the last sound epoch. NaN means
        not measured. An entry has the losses; ``empty_fraction``, ``largest_relative_size`` and
        ``effective_clusters`` by plain inference on all training samples (first and last entry);
        the same with ``_unsettled``, before the centroids settled (last entry), and with
        ``_balanced`` and ``_plain``, by the labels of the epoch's views after and before balancing;
        ``relabelled_fraction``, the share of labels that balancing changed; and
        ``teacher_entropy`` and ``student_entropy``, the mean entropies of the softmaxes in units of
        log K, where 1 means that all clusters are equally probable.
    resolved_params_ : dict
        All parameters with "auto" replaced, the seed that was drawn, and values that follow from
        them. Parameters of checkpoints (``checkpoint_dir`` and the like) are not included.
    sample_names_ : ndarray of shape (n_samples,), object
        File of each label, str; only after fitting a folder, archives or a list of files.
    skipped_ : list of Skipped
        Index, name and reason of each training image that could not be used (``on_error="skip"``).
    ignored_files_ : ndarray of object
        Ignored contents of a folder, str: hidden files and folders, files without the suffix of an
        image, and, with the reason, files and folders that cannot be opened. For archives, pictures
        in other formats, and, with the reason, those that a later member of the same name replaces.
        Only after fitting a folder or archives.
    n_features_in_ : int
        Number of features of the rows; only after fitting rows.
    image_shape_ : tuple of int
        Typical (height, width) of the training images; only after fitting images.
    n_channels_ : int
        Number of channels of the images; only after fitting images.

    Notes
    -----
    All inference uses the teacher, in evaluation mode, without balancing.
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

    @with_names_checked
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
        views: str = "auto",
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
        size_tolerance: float | str = "auto",
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
        self.views = views
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
        self.size_tolerance = size_tolerance
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
        name : {"tiny", "photos", "small", "paper-resnet50", "paper-vit-s16"}
            Name of the recipe. "tiny" is for images of 8 to 32 pixels, or for a first look at
            larger images, and takes minutes on a CPU. "photos" is for photos, from a few hundred
            on: a frozen DINOv2 whose weights come from the internet or from a file
            (``pretrained="weights.safetensors"``). "small" is for 10,000 photos and more, without
            pretrained weights. The others are as published, for ImageNet. See
            :mod:`sklearn_excb.settings.recipes`.
        **params
            Parameters that replace those of the recipe or add to them.

        Raises
        ------
        ValueError
            If there is no such recipe.
        """
        return cls(**(recipe(name) | params))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; parameters that are newer than the pickle get their defaults."""
        parameters = inspect.signature(type(self)).parameters.values()
        defaults = {of.name: of.default for of in parameters if of.default is not of.empty}
        super().__setstate__(defaults | state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
