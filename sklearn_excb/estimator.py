"""The estimator: its parameters, and scikit-learn's conventions.

What it does is in its mixins, one for each use: :mod:`sklearn_excb.fitting.mixin` (``fit``),
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
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin
from torch import nn

from sklearn_excb.fitting.mixin import FittingMixin
from sklearn_excb.fitting.planning import PlanningMixin
from sklearn_excb.inference.mixin import InferenceMixin
from sklearn_excb.saving.mixin import PersistenceMixin
from sklearn_excb.settings.recipes import recipe


class ExCBEstimator(
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    FittingMixin,
    PlanningMixin,
    InferenceMixin,
    PersistenceMixin,
):
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
    sample_names_ : ndarray of shape (n_samples,), object
        The file of each label, str; only after fitting a folder, archives or a list of files.
    skipped_ : list of Skipped
        Index, name and reason of each training image that could not be used (``on_error="skip"``).
    ignored_files_ : ndarray of object
        What else a folder holds, str: hidden files and folders, files that no image ends like, and
        with the reason what cannot be opened; of archives, pictures that are not read. Only after
        fitting a folder or archives.
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
