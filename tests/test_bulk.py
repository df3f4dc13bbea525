"""Results of large collections in one file: by several processes, killed and resumed."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import sklearn_excb.inference.mixin
from sklearn_excb import ExCBEstimator, bulk
from sklearn_excb.bulk import BulkResults, write_results
from sklearn_excb.exceptions import ImageError
from tests.test_ranks import HERE, torchrun

DIGITS = (load_digits().images[:90] / 16).astype(np.float32)
SMALL = {"K": 5, "epochs": 1, "batch_size": 16, "n_local": 0, "random_state": 0, "n_jobs": 1}
SMALL |= {"head_width": 16}


@pytest.fixture(scope="module")
def fitted():
    return ExCBEstimator(**SMALL).fit(DIGITS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(DIGITS):
        Image.fromarray((image * 255).astype(np.uint8)).resize((32, 32)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def of_photos(photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "fitted"
    excb = ExCBEstimator(**SMALL, on_error="skip").fit(photos)
    excb.save(run)
    return excb, run


@pytest.mark.parametrize("of", ["transform", "predict"])
@pytest.mark.parametrize("embedding", ["projection", "backbone", "similarity"])
def test_are_those_of_the_method(of, embedding, fitted, tmp_path):
    fitted.set_params(embedding=embedding)
    expected = getattr(fitted, of)(DIGITS)
    found = write_results(fitted, DIGITS, tmp_path / "new" / "x.npy", of=of, chunk=32)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
    assert not found.flags.writeable
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["x.npy", "x.npy.json"]
    fitted.set_params(embedding="projection")


def test_rows_too(tmp_path):
    rows = DIGITS.reshape(90, 64)
    excb = ExCBEstimator(**SMALL).fit(rows)
    found = write_results(excb, rows, tmp_path / "x.npy", chunk=64)
    np.testing.assert_array_equal(found, excb.transform(rows))


def test_goes_on_with_what_is_missing(fitted, tmp_path, monkeypatch):
    file, done = tmp_path / "x.npy", []
    real = BulkResults.do

    def until_three(self, chunk):
        if len(done) == 3:
            raise OSError("No space left on device")
        real(self, chunk)
        done.append(chunk)

    with monkeypatch.context() as patched:
        patched.setattr(BulkResults, "do", until_three)
        with pytest.raises(OSError, match="No space"):
            write_results(fitted, DIGITS, file, chunk=20)
    results = BulkResults(fitted, DIGITS, file, chunk=20)
    assert results.missing() == [3, 4]
    assert not results.finish()
    monkeypatch.setattr(BulkResults, "do", lambda self, n: (done.append(n), real(self, n)))
    found = write_results(fitted, DIGITS, file, chunk=20)
    assert done == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found, fitted.transform(DIGITS), atol=1e-6)
    write_results(fitted, DIGITS, file, chunk=20)  # nothing is left to do
    assert len(done) == 5


def test_a_chunk_is_there_only_once_its_rows_are(fitted, tmp_path, monkeypatch):
    results = BulkResults(fitted, DIGITS, tmp_path / "x.npy", chunk=45)
    written = []
    monkeypatch.setattr(bulk, "_to_disk", lambda file: written.append(os.path.basename(file.name)))
    results.do(1)
    assert written == ["x.npy", "x.npy.chunks"]
    assert results.missing() == [0]


def test_other_results_are_not_mixed_in(fitted, tmp_path):
    file = tmp_path / "x.npy"
    BulkResults(fitted, DIGITS, file, chunk=40).do(0)
    before = file.read_bytes()
    other = ExCBEstimator(**(SMALL | {"random_state": 1})).fit(DIGITS)
    for excb, X, more, message in (
        (other, DIGITS, {}, "the estimator differs"),
        (fitted, DIGITS[:80], {}, "of X, n_samples was 90, now 80"),
        (fitted, DIGITS[::-1], {}, "of X, contents changed"),
        (fitted, DIGITS, {"of": "predict"}, "of was 'transform', now 'predict'"),
        (fitted, DIGITS, {"chunk": 30}, "chunk was 40, now 30"),
    ):
        with pytest.raises(ValueError, match=message):
            write_results(excb, X, file, **({"chunk": 40} | more))
    assert file.read_bytes() == before
    np.save(tmp_path / "theirs.npy", np.ones(3))
    with pytest.raises(FileExistsError, match="that describes its results"):
        write_results(fitted, DIGITS, tmp_path / "theirs.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "theirs.npy"), np.ones(3))


@pytest.mark.parametrize("content", ["7", "[]", "{", "{}", '{"X": 7}', "[" * 10**5])
def test_a_damaged_description_is_told(content, fitted, tmp_path):
    file = tmp_path / "x.npy"
    BulkResults(fitted, DIGITS, file, chunk=40)
    (tmp_path / "x.npy.json").write_text(content)
    with pytest.raises(ValueError, match=r"(is damaged|other results): .* or remove this one"):
        write_results(fitted, DIGITS, file, chunk=40)


def test_a_list_of_chunks_that_was_cut_short_loses_none(fitted, tmp_path):
    results = BulkResults(fitted, DIGITS, tmp_path / "x.npy", chunk=40)
    results.do(0)
    (tmp_path / "x.npy.chunks").write_bytes(b"")
    assert results.missing() == [0, 1, 2]
    np.testing.assert_array_equal(
        write_results(fitted, DIGITS, tmp_path / "x.npy", chunk=40), fitted.transform(DIGITS)
    )


class Killed(BaseException):
    pass


@pytest.mark.parametrize("ending", [".chunks", "", ".json"])
@pytest.mark.parametrize("before", [True, False])
def test_a_beginning_that_was_cut_off_is_begun_again(ending, before, fitted, tmp_path, monkeypatch):
    real, path = bulk.output_files.replacing, tmp_path / "x.npy"

    @contextmanager
    def cut_off(file):
        if file == path.with_name(f"x.npy{ending}"):
            if before:
                raise Killed
            with real(file) as beside:
                yield beside
            raise Killed
        with real(file) as beside:
            yield beside

    with monkeypatch.context() as patched:
        patched.setattr(bulk.output_files, "replacing", cut_off)
        with pytest.raises(Killed):
            write_results(fitted, DIGITS, path, chunk=32)
    np.testing.assert_array_equal(
        write_results(fitted, DIGITS, path, chunk=32), fitted.transform(DIGITS)
    )


@pytest.mark.parametrize("lost", ["x.npy.chunks", "x.npy"])
@pytest.mark.parametrize("all_done", [True, False])
def test_what_was_lost_is_done_again(lost, all_done, fitted, tmp_path):
    results = BulkResults(fitted, DIGITS, tmp_path / "x.npy", chunk=32)
    for number in results.missing() if all_done else [0]:
        results.do(number)
    results.finish()
    (tmp_path / lost).unlink(missing_ok=True)
    again = write_results(fitted, DIGITS, tmp_path / "x.npy", chunk=32)
    np.testing.assert_array_equal(again, fitted.transform(DIGITS))


@pytest.mark.parametrize("chunk", [0, -5, 2.5])
def test_a_chunk_that_is_none(chunk, fitted, tmp_path):
    with pytest.raises(ValueError, match=r"chunk=.* an integer >= 1"):
        write_results(fitted, DIGITS, tmp_path / "x.npy", chunk=chunk)
    assert not list(tmp_path.iterdir())


def test_a_stream_cannot_be_gone_on_with(fitted, tmp_path):
    with pytest.raises(ValueError, match="can only be iterated"):
        write_results(fitted, iter(DIGITS), tmp_path / "x.npy")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_changes_is_noticed(of_photos, photos, tmp_path):
    excb, _ = of_photos
    BulkResults(excb, photos, tmp_path / "x.npy", chunk=40).do(0)
    added = photos / "added.png"
    added.write_bytes((photos / "0.png").read_bytes())
    try:
        with pytest.raises(ValueError, match="of X, n_samples was 90, now 91; of X, names changed"):
            write_results(excb, photos, tmp_path / "x.npy", chunk=40)
    finally:
        added.unlink()


def test_images_that_are_skipped_are_nan_and_listed(of_photos, photos, tmp_path):
    excb, _ = of_photos
    files = [*sorted(map(str, photos.iterdir()))[:50], str(tmp_path / "gone.png")]
    (tmp_path / "gone.png").write_bytes(b"no picture")
    found = write_results(excb, files, tmp_path / "x.npy", chunk=32)
    assert np.isnan(found[50]).all()
    assert np.isfinite(found[:50]).all()
    (line,) = (tmp_path / "x.npy.skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["index"] == 50
    killed = BulkResults(excb, files, tmp_path / "again.npy", chunk=17)
    (tmp_path / "again.npy.skipped.jsonl").write_text(f"\n{line}\n{line[:20]}")  # rows, no mark yet
    for chunk in killed.missing():
        killed.do(chunk)
    assert killed.finish()
    assert (tmp_path / "again.npy.skipped.jsonl").read_text() == f"{line}\n"
    labels = write_results(excb, files, tmp_path / "labels.npy", of="predict", chunk=32)
    assert labels[50] == -1
    assert labels[:50].min() >= 0


def two_devices(device, devices, source):
    return [torch.device("cpu")] * 2


@pytest.mark.parametrize("X", [DIGITS, list(DIGITS)], ids=["array", "list"])
def test_several_devices_say_what_one_says(X, fitted, monkeypatch):
    excb = copy.deepcopy(fitted)
    excb._fitted.settings.__dict__["micro_batch"] = 8  # batches of 32
    alone = excb.transform(X), excb.predict(X), excb.transform(X[:3])
    monkeypatch.setattr(sklearn_excb.inference.mixin, "inference_devices", two_devices)
    for ours, theirs in zip(
        (excb.transform(X), excb.predict(X), excb.transform(X[:3])), alone, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_what_fails_on_one_device_is_raised(fitted, monkeypatch):
    excb = copy.deepcopy(fitted)
    excb._fitted.settings.__dict__["micro_batch"] = 8
    monkeypatch.setattr(sklearn_excb.inference.mixin, "inference_devices", two_devices)
    with pytest.raises(ImageError, match="Image 80"):
        excb.predict([*DIGITS[:80], b"no image", *DIGITS[81:]])


EXAMPLES = HERE.parent / "examples"


@pytest.mark.slow
def test_two_processes_of_torchrun_fill_one_file(of_photos, photos, tmp_path):
    excb, run = of_photos
    done = torchrun(EXAMPLES / "embed_folder.py", run, photos, tmp_path / "x.npy", "--chunk", "10")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "x.npy.chunks").exists()
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), excb.transform(photos), atol=1e-6)


@pytest.mark.slow
def test_killed_at_any_time_it_goes_on(of_photos, photos, tmp_path):
    excb, run = of_photos
    file = tmp_path / "x.npy"
    words = [str(EXAMPLES / "embed_folder.py"), str(run), str(photos), str(file), "--chunk", "3"]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    process = subprocess.Popen([sys.executable, *words], env=environment)
    chunks, until = tmp_path / "x.npy.chunks", time.monotonic() + 120
    while not (chunks.exists() and chunks.read_bytes().count(1) >= 2):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = [i for i, byte in enumerate(chunks.read_bytes()) if byte]
    rows = np.load(file)
    subprocess.run([sys.executable, *words], env=environment, check=True)
    again = np.load(file)
    for chunk in there:
        part = slice(3 * chunk, 3 * chunk + 3)
        np.testing.assert_array_equal(rows[part], again[part])
    np.testing.assert_allclose(again, excb.transform(photos), atol=1e-6)


@pytest.mark.slow
def test_ray_data_fills_the_file_from_where_it_stopped(of_photos, photos, tmp_path):
    pytest.importorskip("ray.data")
    excb, run = of_photos
    BulkResults(excb, photos, tmp_path / "x.npy", chunk=16).do(2)
    words = [str(EXAMPLES / "ray_embed.py"), str(run), str(photos), str(tmp_path / "x.npy")]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "RAY_worker_niceness": "0"}
    done = subprocess.run(
        [sys.executable, *words, "--chunk", "16"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "x.npy.chunks").exists()
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), excb.transform(photos), atol=1e-6)
