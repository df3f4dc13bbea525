"""A hostile folder: every file is accounted for, nothing shifts, nothing hangs."""

import io
import re
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from evaluation.maps.pictures import as_rgb
from sklearn_excb import ExCBEstimator, ImageError, PixelRangeWarning, SkippedImageWarning
from sklearn_excb.data.open_source import open_source
from sklearn_excb.data.unusable_images import warn_if_nearly_black
from tests.hostile import broken_files, sound_files, write_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore:Corrupt EXIF"),
]
PARAMETERS = {
    "K": 4,
    "epochs": 1,
    "image_size": 16,
    "batch_size": 8,
    "n_local": 0,
    "head_width": 16,
}


def estimator(**parameters):
    return ExCBEstimator(**(PARAMETERS | parameters), random_state=0, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    shapes, broken = write_folder(root)
    assert len(shapes) + len(broken) >= 60
    return root, shapes, broken


def opened(content):
    return Image.open(io.BytesIO(content))


def relative(root, paths):
    return [str(Path(path).relative_to(root)) for path in paths]


def test_every_sound_file_is_read_the_right_way_up(folder):
    root, shapes, broken = folder
    source = open_source(root, on_error="skip")
    assert source.names is not None
    names = relative(root, source.names)
    assert set(names) == set(shapes) | broken
    for index, name in enumerate(names):
        seen = source.shape(index)
        image = source.load_one(index)
        if name in shapes:
            assert seen == shapes[name], name
            assert image.shape == (3, *shapes[name]), name
    assert {names[skipped.index] for skipped in source.skipped()} == broken
    assert all(skipped.name == source.names[skipped.index] for skipped in source.skipped())


def test_a_fit_is_that_of_the_sound_files_and_every_row_has_its_place(folder):
    root, shapes, broken = folder
    with pytest.warns(SkippedImageWarning, match=rf"{len(broken)} of {len(shapes) + len(broken)} "):
        excb = estimator(on_error="skip").fit(root)
    names = relative(root, excb.sample_names_)
    bad = np.isin(names, list(broken))
    np.testing.assert_array_equal(excb.labels_ == -1, bad)
    assert [names[skipped.index] for skipped in excb.skipped_] == list(np.array(names)[bad])
    assert all(skipped.reason for skipped in excb.skipped_)
    assert "notes.txt" in relative(root, excb.ignored_files_)
    assert excb.relative_cluster_sizes_.sum() == pytest.approx(4)

    sound = [root / name for name in names if name in shapes]
    with warnings.catch_warnings():
        warnings.simplefilter("error", SkippedImageWarning)
        clean = estimator().fit(sound)
    np.testing.assert_array_equal(excb.labels_[~bad], clean.labels_)
    np.testing.assert_array_equal(excb.cluster_centers_, clean.cluster_centers_)

    with pytest.warns(SkippedImageWarning):
        labels, embedded = excb.predict(root), excb.transform(root)
    np.testing.assert_array_equal(labels, excb.labels_)
    np.testing.assert_array_equal(np.isnan(embedded).all(axis=1), bad)
    assert np.isfinite(embedded[~bad]).all()


def test_by_default_the_first_broken_file_is_named(folder):
    root, _, broken = folder
    with pytest.raises(ImageError) as raised:
        estimator().fit(root)
    assert any(str(root / name) in str(raised.value) for name in broken)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "tif", "bmp", "jp2", "tga", "ppm"])
def test_pillows_setting_for_files_cut_short_changes_nothing(monkeypatch, kind):
    def decoded(content):
        for use in (lambda: open_source([content]).load_one(0), lambda: as_rgb(opened(content), 0)):
            try:
                yield np.asarray(use()).tolist()
            except (ValueError, OSError):
                yield "refused"

    for name, (content, shape) in sound_files().items():
        if not name.endswith(kind) or max(shape) > 100:
            continue
        broken = bytearray(content)
        broken[len(content) * 2 // 3] ^= 0xFF
        for damaged in (content, content[: len(content) * 2 // 3], content[:-9], bytes(broken)):
            results = []
            for lenient in (False, True):
                monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
                results.append(list(decoded(damaged)))
                assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient
            assert results[0] == results[1], name


def test_a_picture_that_was_refused_is_as_it_was():
    picture = opened(sound_files()["photo.jpg"][0][:-60])
    before = dict(vars(picture))
    for _ in range(2):
        with pytest.raises(OSError, match="truncated"):
            as_rgb(picture, 0)
    assert picture.tile == before["tile"]
    assert set(vars(picture)) <= {*before, "map"}


def test_what_was_skipped_is_saved_and_loaded(folder, tmp_path):
    with pytest.warns(SkippedImageWarning):
        excb = estimator(on_error="skip", epochs=0).fit(folder[0])
    excb.save(tmp_path)
    loaded = ExCBEstimator.load(tmp_path)
    assert loaded.skipped_ == excb.skipped_
    np.testing.assert_array_equal(loaded.labels_, excb.labels_)
    np.testing.assert_array_equal(loaded.ignored_files_, excb.ignored_files_)
    np.testing.assert_array_equal(loaded.relative_cluster_sizes_, excb.relative_cluster_sizes_)


def test_only_broken_files_are_an_error_that_says_why(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        ImageError, match=r"None of the 2 tested images can be used.*a\.jpg: the file is empty"
    ):
        estimator(on_error="skip").fit(tmp_path)


def test_files_that_do_not_exist_are_skipped_when_asked(tmp_path):
    paths = []
    for number in range(9):
        paths.append(tmp_path / f"{number}.png")
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    paths.insert(4, tmp_path / "gone.jpg")
    with pytest.warns(SkippedImageWarning, match=r"1 of 10 images .*gone\.jpg"):
        excb = estimator(on_error="skip").fit(paths)
    assert excb.labels_[4] == -1
    assert (np.delete(excb.labels_, 4) >= 0).all()


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_pictures_are_turned_as_pillow_turns_them(tmp_path, kind):
    for name, (content, _) in sound_files().items():
        if name.startswith("turned") and name.endswith(kind):
            path = tmp_path / name
            path.write_bytes(content)
            expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
            found = open_source([path]).load_one(0).permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(found, expected, err_msg=name)


class FailsAt:
    """A data set that raises at some rows."""

    def __init__(self, rows):
        self.rows = set(rows)
        self.images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.rows:
            raise RuntimeError("the network is gone")
        return self.images[index], 0


def test_a_data_set_that_raises_at_some_rows():
    with pytest.warns(SkippedImageWarning, match="the network is gone"):
        excb = estimator(on_error="skip").fit(FailsAt([0, 7, 39]))
    assert [skipped.index for skipped in excb.skipped_] == [0, 7, 39]
    clean = estimator().fit(np.delete(FailsAt([]).images, [0, 7, 39], axis=0))
    np.testing.assert_array_equal(np.delete(excb.labels_, [0, 7, 39]), clean.labels_)
    with pytest.raises(
        ImageError, match="Image 0 of 40: cannot be read: RuntimeError: the network is gone"
    ):
        estimator().fit(FailsAt([0, 7]))


def test_an_image_that_goes_while_training_does_not_end_the_run():
    data = FailsAt([])

    class Goes(FailsAt):
        n_read = 0

        def __getitem__(self, index):
            Goes.n_read += index == 5
            if index == 5 and Goes.n_read > 3:
                raise OSError("gone")
            return data[index]

    with pytest.warns(SkippedImageWarning, match="1 of 40 images.* 5: cannot be read: gone"):
        excb = estimator(on_error="skip", epochs=3).fit(Goes([]))
    np.testing.assert_array_equal(np.flatnonzero(excb.labels_ < 0), [5])


def test_a_disk_that_goes_while_training_ends_the_run_and_one_hiccup_does_not():
    class Disk(FailsAt):
        n_read, sound, hiccups = 0, 150, ()

        def __getitem__(self, index):
            self.n_read += 1
            if self.n_read > self.sound or self.n_read in self.hiccups:
                raise OSError("Transport endpoint is not connected")
            return super().__getitem__(index)

    gone = Disk([])
    with pytest.raises(ImageError, match=r"can no longer be read.*endpoint"):
        estimator(on_error="skip", epochs=30).fit(gone)
    once = Disk([])
    once.sound, once.hiccups = 10**9, (150,)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SkippedImageWarning)
        excb = estimator(on_error="skip", epochs=3).fit(once)
    assert once.n_read > 150
    assert excb.skipped_ == []
    assert (excb.labels_ >= 0).all()


def test_an_odd_first_image_does_not_decide_for_the_others():
    rgb = list(FailsAt([]).images)
    for odd in (np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9), np.uint8), None):
        with pytest.warns(SkippedImageWarning, match="1 of 41 images"):
            excb = estimator(on_error="skip").fit([odd, *rgb])
        assert [skipped.index for skipped in excb.skipped_] == [0]
        assert excb.n_channels_ == 3


def test_what_is_skipped_is_told_where_it_is_the_cause(folder):
    root, _, broken = folder
    too_many = pytest.raises(ValueError, match=r"K=90 exceeds n_samples=70")
    with pytest.warns(SkippedImageWarning, match=f"{len(broken)} of"), too_many:
        estimator(on_error="skip", K=90).fit(root)
    with pytest.raises(ValueError, match=r"K=90 exceeds n_samples=70"):
        estimator(on_error="skip", K=90).estimate_memory(root)


def test_every_reason_says_something():
    class Silent(FailsAt):
        def __getitem__(self, index):
            if index in self.rows:
                raise (AssertionError(), KeyError("x"), MemoryError())[index % 3]
            return super().__getitem__(index)

    with pytest.warns(SkippedImageWarning):
        excb = estimator(on_error="skip").fit(Silent([3, 4]))
    reasons = [skipped.reason for skipped in excb.skipped_]
    assert reasons == ["cannot be read: AssertionError", "cannot be read: KeyError: 'x'"]
    with pytest.raises(MemoryError) as raised:
        estimator(on_error="skip").fit(Silent([5]))
    assert raised.value.__notes__ == ["It was image 5 of 40."]


def test_the_documentation_lists_this_folder():
    page = (Path(__file__).parent.parent / "docs" / "images.md").read_text()
    listed = set(re.findall(r"^\| `(.*?)` \|", page, flags=re.M))
    known = {*sound_files(), *broken_files(), "a link.jpg", "a link to nothing.jpg", "a pipe.jpg"}
    shown = {re.sub(r"o{200}", "o…o", name).replace("\n", "⏎") for name in known}
    assert listed == shown


def mutated(rng, content):
    """A file after an accident: bytes changed, lost, repeated, or its end cut off."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 8)):
        at = int(rng.integers(len(data)))
        length = int(rng.integers(1, max(2, len(data) // 8)))
        kind = rng.integers(5)
        if kind == 0:
            data[at] = int(rng.integers(256))
        elif kind == 1:
            data[at : at + length] = rng.bytes(length)
        elif kind == 2 and len(data) > 2 * length:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif at > 8:
            del data[at:]
    return bytes(data)


def refused_by_pillow(path):
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:
        return True
    return False


@pytest.mark.parametrize("n_files", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_are_all_accounted_for(tmp_path, n_files):
    rng = np.random.default_rng(0)
    kinds = ("photo.jpg", "alpha.png", "lossless.webp", "animated.gif", "lzw.tif", "palette.bmp")
    originals = sound_files()
    paths = []
    for number in range(n_files):
        name = kinds[number % len(kinds)]
        path = tmp_path / f"{number}{Path(name).suffix}"
        content = originals[name][0]
        path.write_bytes(content if number % 10 == 0 else mutated(rng, content))
        paths.append(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        excb = estimator(on_error="skip", batch_size=64).fit(paths)
        labels = excb.predict(tmp_path)
    skipped = {entry.index for entry in excb.skipped_}
    np.testing.assert_array_equal(np.flatnonzero(excb.labels_ < 0), sorted(skipped))
    assert not skipped.intersection(range(0, n_files, 10))
    assert 0.1 * n_files < len(skipped) < 0.9 * n_files
    assert skipped >= {i for i, path in enumerate(paths) if refused_by_pillow(path)}
    np.testing.assert_array_equal(labels, excb.labels_)


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("route", ["folder", "list", "archive"])
def test_all_broken_files_are_counted_and_what_to_do_is_told(tmp_path, route, n_jobs):
    contents = {f"{i}.png": sound_files()["palette.png"][0] for i in range(9)}
    contents["3.png"] = contents["7.png"] = b"broken"
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in contents:
            archive.add(tmp_path / name, name)
    files = [tmp_path / name for name in contents]
    X = {"folder": tmp_path, "list": files, "archive": tmp_path / "a.tar"}[route]
    told = r'3\.png: not an .*2 of 9 files .*also .*7\.png\. on_error="skip" \(--on-error skip\) l'
    fitted = estimator(epochs=0, n_jobs=n_jobs).fit(files[:3] + files[4:6])
    for use in (estimator(n_jobs=n_jobs).fit, fitted.predict, fitted.transform):
        with pytest.raises(ImageError, match=told):
            use(X)
    plan = estimator().dry_run(X)
    assert [Path(skipped.name).name for skipped in plan.unusable] == ["3.png", "7.png"]
    assert re.search(r"2 of 9 tried .*\(--on-error skip\) leaves.*\n.*3\.png: not an im", str(plan))


DARK = {
    "12 bits in 16": (np.uint16, 4095, r"4095 \(12 bits\) in X.*/ 4095"),
    "14 bits in 16": (np.uint16, 16_000, r"16383 \(14 bits\)"),
    "a mask": (np.uint8, 1, r"white is 1 \(1 bits\)"),
    "16 levels": (np.uint8, 15, r"15 \(4 bits\)"),
    "12 bits / 65535": (np.float32, 4095 / 65535, r"0\.06"),
}


# pictures of 8 bits use them, and floats have no files
@pytest.mark.parametrize(
    ("kind", "route"),
    [(kind, route) for kind in DARK for route in ("array", "list", "data set")]
    + [(kind, route) for kind in list(DARK)[:2] for route in ("files", "pictures")],
)
def test_images_that_are_nearly_black_are_told(tmp_path, kind, route):
    dtype, white, told = DARK[kind]
    X = (np.random.default_rng(0).random((9, 12, 12)) * white).round(0 if white >= 1 else 9)
    X = X.astype(dtype)
    X[:, 0, 0] = white
    if route in ("files", "pictures"):
        X = [Image.fromarray(image) for image in X]
        for i, image in enumerate(X):
            image.save(tmp_path / f"{i}.png")
    X = {"list": list(X), "data set": dict(enumerate(X)), "files": tmp_path}.get(route, X)
    with pytest.warns(PixelRangeWarning, match=told):
        estimator(epochs=0, image_size=12).fit(X)


class Counted(dict):
    """A data set that counts how often it is read."""

    n_read = 0

    def __getitem__(self, index):
        self.n_read += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("kind", ["array", "data set"])
def test_many_nearly_black_images_are_told_at_inference_too(kind):
    bright = np.random.default_rng(0).integers(0, 65_536, (64, 12, 12), np.uint16)
    fitted = estimator(epochs=0, image_size=12, batch_size=64).fit(bright)
    dark = bright // 16
    X = dark if kind == "array" else Counted(enumerate([*dark] * 10))
    with pytest.warns(PixelRangeWarning, match="4095"):
        fitted.predict(X)
    assert kind == "array" or X.n_read <= 640 + 2 * 65
    with warnings.catch_warnings():
        warnings.simplefilter("error", PixelRangeWarning)
        fitted.transform(bright)
        fitted.transform(dark[:63] if kind == "array" else list(dark))  # they may be dark
        fitted.transform(np.zeros_like(dark))


def test_dark_and_black_images_of_the_full_range_are_not_told_of():
    X = np.zeros((9, 12, 12), np.uint16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PixelRangeWarning)
        warn_if_nearly_black(open_source(X))
        X[4, 0, 0] = 60_000
        warn_if_nearly_black(open_source(X))
