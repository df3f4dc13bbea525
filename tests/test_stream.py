"""What can only be iterated, and the other things that an item may be."""

import copy
import io
import itertools
import signal
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch.utils.data import DataLoader, IterableDataset

from sklearn_excb import ExCBEstimator
from sklearn_excb.data import open_source as images
from sklearn_excb.exceptions import DivergenceWarning, ImageError, SkippedImageWarning
from sklearn_excb.fitting import run
from sklearn_excb.runtime import threads
from sklearn_excb.views import stream_batches
from tests.small_runs import interrupting
from tests.tiers import others_slow

IMAGES = list(np.random.default_rng(0).integers(0, 255, (70, 12, 12, 3), dtype=np.uint8))
BROKEN = 66  # in the second part of a stream


def small(**parameters):
    cheap = {
        "K": 4,
        "epochs": 1,
        "batch_size": 16,
        "n_local": 0,
        "head_width": 16,
        "image_size": 12,
    }
    return ExCBEstimator(**cheap, random_state=0, **parameters)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


FORMS = {
    "an array": lambda array: array,
    "a picture": Image.fromarray,
    "with a label": lambda array: (array, 3),
    "a dict": lambda array: {"label": 3, "image": array},
    "a sample of WebDataset": lambda array: {"__key__": "7", "cls": 3, "png": png(array)},
    "undecoded, of Hugging Face": lambda array: {"image": {"bytes": png(array), "path": None}},
    "bytes": png,
    "an open file": lambda array: io.BytesIO(png(array)),
}


class Stream(IterableDataset):
    """Every item once an iteration."""

    def __init__(self, form, items=IMAGES):
        self.form, self.items = form, items

    def __iter__(self):
        return map(self.form, self.items)


@pytest.fixture(scope="module")
def fitted():
    return small().fit(IMAGES)


def with_a_broken_one():
    return (b"no image" if i == BROKEN else image for i, image in enumerate(IMAGES))


@pytest.mark.parametrize("name", others_slow(FORMS, default=4))
def test_a_stream_and_a_list_are_the_same_whatever_the_items(name, fitted):
    form = FORMS[name]
    of_list = small().fit([form(image) for image in IMAGES])
    infer_stream = small().fit(Stream(form))
    np.testing.assert_array_equal(of_list.labels_, fitted.labels_)
    np.testing.assert_array_equal(infer_stream.labels_, fitted.labels_)
    np.testing.assert_array_equal(fitted.predict(Stream(form)), fitted.labels_)
    expected = fitted.transform(IMAGES)
    np.testing.assert_allclose(fitted.transform(map(form, IMAGES)), expected, atol=1e-5)


def test_rows_are_no_stream_of_images():
    with pytest.raises(TypeError, match=r"np\.stack"):
        small().fit(iter(np.zeros((9, 4))))


@pytest.mark.parametrize(
    "item",
    [
        lambda good, bad: {"depth.png": bad, "jpg": good, "json": {}},
        lambda good, bad: {"path": "nowhere.jpg", "image": good},
        lambda good, bad: {"bytes": good, "path": "nowhere.jpg"},
        lambda good, bad: {"image": None, "left.png": good},
        lambda good, bad: bytearray(good),
    ],
)
def test_the_picture_of_a_dict_is_the_one_that_is_named_so(item, fitted):
    items = [item(png(image), b"no image") for image in IMAGES]
    np.testing.assert_array_equal(fitted.predict(items), fitted.labels_)


def test_lazy_pictures_are_read_from_one_thread_wherever_they_are():
    pictures = [Image.fromarray(image) for image in IMAGES]
    for form in (lambda p: p, lambda p: (p, 1), lambda p: {"image": p}, lambda p: ({"img": p}, 1)):
        assert not images.open_source([form(picture) for picture in pictures]).reads_in_parallel
    assert images.open_source([png(image) for image in IMAGES]).reads_in_parallel


def test_only_a_part_of_a_stream_is_in_memory(fitted):
    alive, most = set(), 0

    def counted():
        nonlocal most
        for i in range(300):
            image = IMAGES[i % len(IMAGES)].copy()
            alive.add(i)
            weakref.finalize(image, alive.discard, i)
            most = max(most, len(alive))
            yield image
            del image

    out = np.full(300, -7)
    assert fitted.predict(counted(), out=out) is out
    assert 64 <= most <= 66
    assert (out == fitted.labels_[0]).all()


@pytest.mark.parametrize(("n_rows", "says"), [(69, "more images"), (71, "ended after 70")])
def test_out_has_to_take_the_whole_stream(fitted, n_rows, says):
    with pytest.raises(ValueError, match=says):
        fitted.predict(iter(IMAGES), out=np.empty(n_rows, np.int64))


def test_a_broken_item_is_named_or_skipped(fitted):
    with pytest.raises(ImageError, match=r"^Image 66: not an image in a known format"):
        fitted.predict(with_a_broken_one())
    excb = small(on_error="skip")
    with pytest.warns(SkippedImageWarning, match="1 of 70"):
        excb.fit(with_a_broken_one())
    assert [skipped.index for skipped in excb.skipped_] == [BROKEN]
    with pytest.warns(SkippedImageWarning, match="1 of 70 .* The first is 66: not an") as said:
        labels = excb.predict(with_a_broken_one())
    assert [warning.filename for warning in said] == [__file__]
    np.testing.assert_array_equal(labels, excb.labels_)
    assert labels[BROKEN] == -1


@pytest.mark.parametrize(
    ("X", "error", "says"),
    [
        (lambda: iter([]), ValueError, "empty"),
        (lambda: DataLoader(IMAGES), TypeError, "X.dataset"),
        (lambda: {1, 2}, TypeError, "set is not a collection"),
        (lambda: iter([{"label": 3}]), ImageError, r"without an image.* keys are \['label'\]"),
        (lambda: iter([{"png": b"", "jpg": b""}]), ImageError, r"several images: \['png', 'jpg'\]"),
        (
            lambda: io.BytesIO(png(IMAGES[0])),
            TypeError,
            r"one file \(BytesIO\).* \[X\]",
        ),
        (lambda: png(IMAGES[0]), TypeError, r"one file \(bytes\)"),
    ],
)
def test_what_is_no_stream_of_images_says_so(fitted, X, error, says):
    for method in (small().fit, fitted.predict):
        with pytest.raises(error, match=says):
            method(X())


def test_a_stream_that_memory_cannot_keep_ends_with_advice(monkeypatch):
    monkeypatch.setattr(images, "available_memory", lambda device: 0)
    with pytest.raises(ValueError, match=r"full after 64 images\. Pass a collection with an index"):
        small().fit(iter(IMAGES))


def counted(items, n_asked):
    for item in items:
        n_asked.append(1)
        yield item


def test_ctrl_c_in_a_stream_leaves_a_fitted_estimator():
    def stream():
        for number, image in enumerate(itertools.cycle(IMAGES)):
            if number == 16 * 10:
                signal.raise_signal(signal.SIGINT)
            yield image

    excb = small(steps_per_epoch=3).set_params(epochs=1000)
    with pytest.raises(KeyboardInterrupt, match="stopped in epoch 3 of 1000"):
        excb.fit(stream())
    assert excb.predict(IMAGES).shape == (70,)
    assert 0 <= excb.history_[-1]["empty_fraction"] < 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_steps_per_epoch_reads_as_many_batches_and_keeps_none():
    n_asked = []
    excb = small(steps_per_epoch=3).set_params(epochs=2)
    excb.fit(counted(itertools.cycle(IMAGES), n_asked))
    # an epoch's for the first centroids; the next batch is asked for before the end is seen
    assert len(n_asked) == 16 * (3 + 2 * 3)
    assert [entry["epoch"] for entry in excb.history_] == [0, 1, 2]
    assert 0 <= excb.history_[-1]["empty_fraction"] <= excb.history_[-1]["empty_fraction_unsettled"]
    assert excb.resolved_params_["steps_per_epoch"] == 3
    assert excb.n_channels_ == 3
    assert excb.image_shape_ == (12, 12)
    assert excb.predict(IMAGES).shape == (70,)
    with pytest.raises(NotFittedError, match="labels_"):
        excb.labels_  # noqa: B018 - that is what raises
    assert excb.set_params(steps_per_epoch="auto").fit(IMAGES).labels_.shape == (70,)


def test_of_a_stream_only_a_part_and_the_next_are_in_memory():
    alive, left = set(), []

    def counted():
        for i in itertools.count():
            image = IMAGES[i % len(IMAGES)].copy()
            alive.add(i)
            weakref.finalize(image, alive.discard, i)
            left.append(len(alive))
            yield image
            del image

    small(steps_per_epoch=3).set_params(epochs=3).fit(counted())
    assert len(left) == 16 * (3 + 9)
    assert max(left) <= 2 * 16 + 2


@pytest.mark.parametrize("form", others_slow(FORMS))
def test_a_stream_begins_again_when_it_ends(form):
    few = {"steps_per_epoch": 3, "on_error": "raise"}
    excb = small(**few).fit(Stream(FORMS[form]))
    again = small(**few).fit(itertools.cycle(IMAGES))
    np.testing.assert_array_equal(excb.predict(IMAGES), again.predict(IMAGES))


def test_a_stream_that_ends_says_so_and_loses_nothing(fitted):
    before = fitted.predict(IMAGES)
    excb = copy.deepcopy(fitted).set_params(steps_per_epoch=4)
    with pytest.raises(ValueError, match=r"ended after 70 images.*lower epochs"):
        excb.fit(iter(IMAGES))
    np.testing.assert_array_equal(excb.predict(IMAGES), before)
    with pytest.raises(ValueError, match="empty"):
        excb.fit(iter([]))


def one_batch_for_ever(*, breaks_at=None, act=None):
    """The same images in each step, so that a stream read anew gives what the first one would."""
    for number, image in enumerate(itertools.cycle(IMAGES[:16])):
        if number == breaks_at:
            act()
        yield image


def refuse():
    raise OSError("the disk is gone")


class Ended(BaseException):
    """What a handler of SIGTERM raises here, in the place of an end of the process."""


@pytest.fixture
def on_sigterm():
    def end(number, frame):
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    yield lambda: signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("what", ["a failed read", "SIGTERM", "Ctrl-C"])
def test_the_training_on_a_stream_is_taken_up_where_it_was(what, tmp_path, on_sigterm):
    act, error = {
        "a failed read": (refuse, OSError),
        "SIGTERM": (on_sigterm, Ended),
        "Ctrl-C": (lambda: signal.raise_signal(signal.SIGINT), KeyboardInterrupt),
    }[what]
    parameters = {"steps_per_epoch": 3, "settle_passes": 0, "n_channels": 3}
    whole = small(**parameters).set_params(epochs=3).fit(one_batch_for_ever())
    excb = small(**parameters, checkpoint_dir=tmp_path).set_params(epochs=3)
    with pytest.raises(error):
        # 3 batches to start from, then the 6th step
        excb.fit(one_batch_for_ever(breaks_at=16 * 8, act=act))
    n_done = 5 if what == "a failed read" else 6  # a signal waits for the end of a step
    assert (tmp_path / f"step-00000000{n_done}.safetensors").exists()
    excb.fit(one_batch_for_ever())
    np.testing.assert_array_equal(excb.cluster_centers_, whole.cluster_centers_)
    np.testing.assert_array_equal(excb.transform(IMAGES), whole.transform(IMAGES))
    assert [entry["epoch"] for entry in excb.history_] == [0, 1, 2, 3]
    again = clone(excb).fit(one_batch_for_ever())  # has nothing left to train
    np.testing.assert_array_equal(again.transform(IMAGES), whole.transform(IMAGES))
    with pytest.raises(ValueError, match="steps_per_epoch was 3, now 4"):
        clone(excb).set_params(steps_per_epoch=4).fit(one_batch_for_ever())


def test_what_is_taken_up_reads_a_sample_to_settle_on(tmp_path):
    excb = small(steps_per_epoch=3, settle_passes=2, checkpoint_dir=tmp_path)
    excb.fit(one_batch_for_ever())
    again = clone(excb).fit(one_batch_for_ever())
    np.testing.assert_allclose(again.cluster_centers_, excb.cluster_centers_, atol=1e-6)
    assert excb.history_[-1]["empty_fraction"] == again.history_[-1]["empty_fraction"] < 1
    few = clone(excb).fit(itertools.islice(one_batch_for_ever(), 40))  # has ended: what there is
    np.testing.assert_allclose(few.cluster_centers_, excb.cluster_centers_, atol=1e-6)


def test_what_is_taken_up_and_does_not_settle_reads_no_more_than_a_batch(tmp_path):
    n_asked = []
    excb = small(steps_per_epoch=3, settle_passes=0, checkpoint_dir=tmp_path)
    excb.fit(one_batch_for_ever())
    clone(excb).fit(counted(one_batch_for_ever(), n_asked))
    assert len(n_asked) == 16


def test_nobody_waits_for_a_reader_that_does_not_answer():
    """Or a second Ctrl-C would not leave at once, nor Python end."""
    asked, answers = threading.Event(), threading.Event()
    readers = []

    def read():
        readers.append(threading.current_thread())
        if len(readers) > 1:
            asked.set()
            answers.wait(60)

    items = threads.read_ahead(read, 5, 1)
    next(items)
    assert asked.wait(60)
    items.close()
    assert readers[0].is_alive()
    assert readers[0].daemon
    answers.set()
    readers[0].join(60)
    assert len(readers) == 2


def test_a_warm_start_goes_on_with_what_comes():
    excb = small(steps_per_epoch=3, warm_start=True).fit(one_batch_for_ever())
    before = excb.cluster_centers_
    excb.set_params(epochs=2).fit(one_batch_for_ever())
    assert [entry["epoch"] for entry in excb.history_] == [0, 1, 2]
    assert not np.array_equal(excb.cluster_centers_, before)


def test_a_warm_start_follows_a_fit_of_no_epochs():
    excb = small(steps_per_epoch=3, warm_start=True).set_params(epochs=0).fit(one_batch_for_ever())
    excb.set_params(epochs=1).fit(one_batch_for_ever())
    assert [entry["epoch"] for entry in excb.history_] == [0, 1]


def test_ctrl_c_ends_a_fit_whose_reader_is_ahead(monkeypatch):
    monkeypatch.setattr(stream_batches.StreamBatches, "n_ahead", 2)

    def slow():
        for number in itertools.count():
            time.sleep(0.002 * (number > 48))
            yield png(IMAGES[number % len(IMAGES)])

    excb = small(steps_per_epoch=50, n_jobs=2)
    with interrupting(after=4), pytest.raises(KeyboardInterrupt, match="is fitted"):
        excb.fit(slow())
    assert np.isfinite(excb.transform(IMAGES)).all()


def test_a_stream_that_diverges_late_ends_with_the_last_sound_epoch(monkeypatch):
    real = run.train

    def diverging(networks, *args, **more):
        for report in real(networks, *args, **more):
            if report.step >= 4:
                total = report.outcome.loss.total * torch.nan
                loss = report.outcome.loss._replace(total=total)
                report = report._replace(outcome=report.outcome._replace(loss=loss))
            yield report

    monkeypatch.setattr(run, "train", diverging)
    excb = small(steps_per_epoch=3).set_params(epochs=3)
    with pytest.warns(DivergenceWarning, match="diverged in epoch 2 of 3, step 5.*after epoch 1"):
        excb.fit(Stream(FORMS["an array"]))
    assert np.isfinite(excb.transform(IMAGES)).all()


def test_what_is_read_ahead_is_what_is_read_between_steps(monkeypatch):
    between = small(steps_per_epoch=3, n_jobs=2).set_params(epochs=2).fit(Stream(png))
    monkeypatch.setattr(stream_batches.StreamBatches, "n_ahead", 2)
    readers, n_asked = set(), []

    def noted(item):
        readers.add(threading.current_thread())
        return item

    stream = Stream(noted, [png(image) for image in IMAGES])
    ahead = small(steps_per_epoch=3, n_jobs=2).set_params(epochs=2)
    ahead.fit(counted(itertools.chain(stream, stream, stream), n_asked))
    assert len(readers) == 2  # the first centroids are read for by the caller's
    assert len(n_asked) == 16 * (3 + 2 * 3)
    np.testing.assert_array_equal(ahead.transform(IMAGES), between.transform(IMAGES))


@pytest.mark.parametrize(
    ("X", "parameters", "message"),
    [
        (IMAGES, {}, "has a length"),
        (iter(IMAGES), {"devices": 2}, "torchrun"),
        (iter(IMAGES), {"steps_per_epoch": 0}, "steps_per_epoch=0"),
        (iter(IMAGES), {"K": 60}, "60"),
    ],
)
def test_what_a_stream_cannot_have(X, parameters, message):
    with pytest.raises(ValueError, match=message):
        small(steps_per_epoch=3).set_params(**parameters).fit(X)


def test_broken_images_of_a_stream_are_left_out():
    excb = small(steps_per_epoch=4, on_error="skip")
    with pytest.warns(SkippedImageWarning, match="1 of 128 images .* were left out"):
        excb.fit(itertools.chain(with_a_broken_one(), itertools.cycle(IMAGES)))
    assert [image.index for image in excb.skipped_] == [BROKEN]
    assert np.isfinite(excb.transform(IMAGES)).all()


def test_a_part_without_a_usable_image_is_passed_over():
    def stream(n_broken):
        yield from IMAGES
        yield from itertools.repeat(b"no image", n_broken)
        yield from itertools.cycle(IMAGES)

    excb = small(steps_per_epoch=5, on_error="skip")
    with pytest.warns(SkippedImageWarning, match="40 of"):
        excb.fit(stream(40))  # two whole parts of 16, and more
    assert np.isfinite(excb.transform(IMAGES)).all()
    with pytest.raises(ImageError, match="None of the 16 tested images"):
        excb.fit(stream(16 * 8))


def test_threads_of_a_stream_are_as_many_as_it_says(monkeypatch):
    used = []
    real = stream_batches.reader_threads
    monkeypatch.setattr(
        stream_batches, "reader_threads", lambda n, **more: used.append(n) or real(n, **more)
    )
    for n_jobs in ("auto", 2):
        excb = small(steps_per_epoch=3, n_jobs=n_jobs).fit(Stream(png))
        assert set(used) == {excb.resolved_params_["n_jobs"]}
        used.clear()


# a pass that is not read to its end leaves its shard open, which webdataset does not close
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("decoded", [False, True])
def test_shards_of_webdataset(decoded, tmp_path):
    wds = pytest.importorskip("webdataset")
    for shard in range(2):
        with wds.TarWriter(str(tmp_path / f"{shard}.tar")) as tar:
            for number, image in enumerate(IMAGES[35 * shard : 35 * shard + 35]):
                tar.write({"__key__": f"{shard}-{number}", "png": png(image), "cls": 3})
    shards = [str(tmp_path / f"{shard}.tar") for shard in range(2)]
    stream = wds.WebDataset(shards, shardshuffle=False, empty_check=False)
    if decoded:
        stream = stream.decode("pil").to_tuple("png", "cls")
    excb = small(steps_per_epoch=3).fit(stream)
    again = small(steps_per_epoch=3).fit(itertools.cycle(IMAGES))
    np.testing.assert_array_equal(excb.predict(stream), again.predict(IMAGES))
