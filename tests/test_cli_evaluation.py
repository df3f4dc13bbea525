"""The commands that look at a fit, on folders of real images."""

import csv
import json
import ntpath
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from evaluation import clustering_scores, knn_accuracy
from sklearn_excb import ExCBEstimator, reporting
from sklearn_excb.cli.commands import main
from sklearn_excb.reporting import evaluate, report, short_names
from tests.small_runs import files_up_to

DIGITS = load_digits()


def write_folder(folder, rows, suffix="png"):
    """Images of digits, each in the folder of its class."""
    for i in rows:
        path = folder / str(DIGITS.target[i]) / f"digit {i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((DIGITS.images[i] * 15).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("train"), range(80))


@pytest.fixture(scope="module")
def test(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("test"), range(80, 120))


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    small = {"K": 12, "epochs": 2, "image_size": 12, "local_size": 8, "head_width": 16}
    ExCBEstimator(**small, random_state=0).fit(train).save(folder)
    return folder


def classes(names):
    return [name.rsplit("/", 2)[1] for name in names]


def test_embed_is_transform(run, test, tmp_path):
    out, names = tmp_path / "rows.npy", tmp_path / "names.csv"
    words = ["embed", str(run), str(test), "-o", str(out), "--names", str(names)]
    assert main([*words, "--embedding", "backbone"]) == 0
    excb = ExCBEstimator.load(run).set_params(embedding="backbone")
    assert np.array_equal(np.load(out), excb.transform(test))
    with names.open(newline="") as table:
        paths = [row["path"] for row in csv.DictReader(table)]
    assert len(paths) == 40
    assert paths[0].endswith("/0/digit 101.png")
    assert sorted(tmp_path.iterdir()) == [names, out]
    assert main(words) == 0
    assert np.load(out).shape == (40, 256)


def test_report_shows_the_folder(run, train, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert main(["report", str(run), str(train), "-o", str(out), "--classes"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["shown"], told["skipped"]) == (80, 80, 0)
    text = out.read_text()
    assert "0/digit 0.png" in text
    assert "k-means on the same embeddings" in text
    assert "untrained network, k-means" in text
    assert "NMI" in text
    assert "teacher entropy" in text
    assert '"merges"' in text
    assert "teacher_momentum" in text
    assert f"<title>{train.name}</title>" in text


def test_what_is_odd_is_named(run, tmp_path, capsys):
    photos = write_folder(tmp_path / "photos", range(30))
    copied = photos / "0" / "copy.png"
    shutil.copy(next((photos / "0").glob("*.png")), copied)
    out, odd = tmp_path / "report.html", tmp_path / "odd.json"
    words = ["report", str(run), str(photos), "-o", str(out), "--no-baseline", "--json"]
    assert main([*words, str(odd)]) == 0
    told = json.loads(capsys.readouterr().out)
    found = json.loads(odd.read_text())
    assert found.items() >= told.items()
    assert len(found["duplicates"]) == told["groups_of_duplicates"]
    assert any(str(copied) in group for group in found["duplicates"])
    assert all(Path(name).is_file() for name in found["outliers"])
    assert main([*words, "-"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_a_broken_image_is_left_out_of_every_command(run, tmp_path, capsys):
    photos = write_folder(tmp_path / "photos", range(30))
    (photos / "0" / "broken.png").write_bytes(b"no image")
    skip = ["--on-error", "skip"]
    out = tmp_path / "out"
    words = ["report", str(run), str(photos), "-o", str(out), "--no-baseline", *skip]
    with pytest.warns(UserWarning, match="1 of 31 images"):
        assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["skipped"]) == (30, 1)
    with pytest.warns(UserWarning, match="1 of 31 images"):
        assert main(["embed", str(run), str(photos), "-o", str(out), *skip]) == 0
    assert np.isnan(np.load(out)).all(axis=1).sum() == 1
    words = ["evaluate", str(run), "--train", str(photos), "--json", "-", *skip]
    with pytest.warns(UserWarning, match="1 of 31 images"):
        assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["train"]["occupancy"]["n_skipped"] == 1


def test_evaluate_gives_the_figures_of_evaluation(run, train, test, tmp_path, capsys):
    out = tmp_path / "figures.json"
    words = ["evaluate", str(run), "--train", str(train), "--test", str(test), "--json", str(out)]
    assert main(words) == 0
    found = json.loads(out.read_text())
    excb = ExCBEstimator.load(run)
    y = classes(excb.sample_names_)
    scores = clustering_scores(y, excb.labels_)
    assert found["train"]["clustering"]["nmi"] == scores.nmi
    assert found["train"]["occupancy"]["n_clusters"] == 12
    excb.set_params(embedding="backbone")
    y_test = DIGITS.target[sorted(range(80, 120), key=lambda i: (DIGITS.target[i], i))].astype(str)
    rows = excb.transform(train), y, excb.transform(test), y_test
    assert found["knn"] == {"10": knn_accuracy(*rows, k=10), "20": knn_accuracy(*rows, k=20)}
    assert 0.3 < found["probe"]["top1"] <= found["probe"]["top5"] <= 1
    table = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(table["knn 10"]) == pytest.approx(found["knn"]["10"], abs=1e-3)


def test_labels_and_embeddings_of_a_report_are_those_of_predict_and_transform(run, train):
    excb = ExCBEstimator.load(run)
    projections, labels = reporting.infer(excb, train)
    np.testing.assert_array_equal(labels, excb.predict(train))
    np.testing.assert_array_equal(projections, excb.transform(train))


def test_without_classes_there_are_only_clusters(run, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(20):
        Image.fromarray((DIGITS.images[i] * 15).astype(np.uint8)).save(flat / f"{i}.png")
    assert main(["evaluate", str(run), "--train", str(flat), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["train"]
    assert list(found["train"]) == ["occupancy"]


def test_compare_puts_fits_side_by_side(run, train, tmp_path, capsys):
    other = tmp_path / "other"
    excb = ExCBEstimator(K=5, epochs=1, image_size=12, local_size=8, random_state=1).fit(train)
    excb.save(other)
    plot = tmp_path / "sizes.png"
    assert main(["compare", str(run), str(other), "-o", str(plot), "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["K"] for row in rows] == [12, 5]
    assert rows[0]["agreement"] == 1
    expected = adjusted_rand_score(ExCBEstimator.load(run).labels_, excb.labels_)
    assert rows[1]["agreement"] == pytest.approx(expected)
    with Image.open(plot) as picture:
        assert picture.size[0] > 500
    assert main(["compare", str(run), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["run", "K", "images"]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "{run}", "{train}", "-o", "{train}"], "is a folder"),
        (["report", "{run}", "{train}", "-o", "{train}/no/report.html"], "is not a folder"),
        (["report", "{run}", "{train}", "-o", "{tmp}/a.html", "--max-images", "1"], "max_images=1"),
        (["embed", "{run}", "nowhere", "-o", "{tmp}/a.npy"], "No such folder: nowhere"),
        (["embed", "{run}", "{train}", "-o", "{tmp}/a", "--names", "{tmp}/a"], "the same file"),
        (["embed", "{tmp}", "{train}", "-o", "{tmp}/a.npy"], "No saved estimator"),
        (["evaluate", "{run}", "--train", "{train}", "--json", "{tmp}/b/c"], "is not a folder"),
        (["evaluate", "{run}", "--train", "{train}", "--test", "{train}/0"], "Only one of the two"),
        (["compare", "{run}", "{tmp}"], "No saved estimator"),
    ],
)
def test_errors_of_the_user_are_one_line(words, message, run, train, tmp_path, capsys):
    words = [word.format(run=run, train=train, tmp=tmp_path) for word in words]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["embed", "{run}", "{test}", "-o", "{file}"],
        ["predict", "{run}", "{test}", "--csv", "{file}"],
        ["evaluate", "{run}", "--train", "{test}", "--json", "{file}"],
        ["compare", "{run}", "--json", "{file}"],
        ["compare", "{run}", "-o", "{file}"],
    ],
)
def test_a_full_disk_is_one_line_that_names_the_file(words, run, test, tmp_path, capsys):
    (tmp_path / "old").write_text("old")
    places = {"run": run, "test": test, "file": tmp_path / "old"}
    with files_up_to(60):
        assert main([word.format(**places) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{tmp_path}/old cannot be written (File too large). Choose another path" in err
    assert len(err.splitlines()) == 1
    assert (tmp_path / "old").read_text() == "old"


def test_bad_arguments_of_a_report_fail_before_the_work(run, train, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("worked before it had looked")

    excb = ExCBEstimator.load(run)
    monkeypatch.setattr("sklearn_excb.reporting.infer", never)
    with pytest.raises(ValueError, match="max_images=1"):
        report(excb, train, tmp_path / "a.html", max_images=1)


def test_what_can_be_read_only_once_is_refused(run, tmp_path):
    excb = ExCBEstimator.load(run)
    for use in (lambda X: report(excb, X, tmp_path / "a.html"), lambda X: evaluate(excb, X)):
        with pytest.raises(ValueError, match="X of type generator can be read only once"):
            use(image for image in DIGITS.images[:20] / 16)
    assert not list(tmp_path.iterdir())


def test_names_lose_the_folder_that_all_are_in():
    assert short_names(["/a/b/c.png", "/a/d.png"]) == ["b/c.png", "d.png"]
    assert short_names(["shard.tar/x/1.jpg", "shard.tar/2.jpg"]) == ["x/1.jpg", "2.jpg"]
    assert short_names(["1.jpg"]) == ["1.jpg"]
    assert short_names(None) is None
    mixed = [str(Path("a/b.png").absolute()), "a/c/d.png", "./a/e.png"]
    assert short_names(mixed) == ["b.png", "c/d.png", "e.png"]


def test_names_of_several_drives_stay_as_they_are(monkeypatch):
    monkeypatch.setattr("sklearn_excb.data.image_names.os.path", ntpath)
    assert short_names(["C:/a/b.png", "D:/c.png"]) == ["C:/a/b.png", "D:/c.png"]
