"""The comparison of clusterings: its cells, its scores and its tables."""

import numpy as np
import pytest

from benchmarks import kinds
from benchmarks._temi import temi
from benchmarks._turtle import turtle
from benchmarks.clusterers import METHODS
from benchmarks.feature_sets import load_rows
from benchmarks.kind_tables import above_k_means
from evaluation import clustering_scores

CHOSEN = ["k-means", "Ward", "HDBSCAN"]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    def call(name, *more):
        chosen = ["--sets", "tiny", "--seeds", "0", "1", "--results", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["kinds", name, *chosen, "--methods", *CHOSEN, *more])
        kinds.main()
        return capsys.readouterr().out

    return call


def test_cells_are_run_once_shown_and_forgotten(command, tmp_path):
    assert command("run").count("AMI") == 3 * 2 + 3 + 1  # one seed of what needs none
    stored = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert len(stored) == 10 + 2  # the curves
    assert command("run") == ""
    shown = command("show")
    assert "| k-means | 2 of 2 | 3 | 3.0 | 1.00 | 1.00 | 0% | 1.000 | 1.000 |" in shown
    assert "| HDBSCAN | 1.000 |" in shown
    command("forget")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cell_that_fails_or_lacks_its_package_stops_no_other(command, monkeypatch):
    def broken(*arguments):
        raise ValueError("no such thing")

    monkeypatch.setitem(METHODS, "Ward", METHODS["Ward"]._replace(cluster=broken))
    monkeypatch.setitem(METHODS, "k-means", METHODS["k-means"]._replace(package="not_there"))
    said = command("run")
    assert "k-means: skipped, not_there is not installed" in said
    assert said.count("Ward, seed 0: failed: ValueError: no such thing") == 3
    assert "HDBSCAN, seed 0: 3 clusters" in said


def test_baselines_come_first():
    cells = list(kinds.cells_of(["tiny", "moons"], list(METHODS), (0, 1)))
    excb = [cell.method.startswith("ExCB") for cell in cells]
    assert excb == sorted(excb)
    assert len({cell.path(kinds.RESULTS) for cell in cells}) == len(cells)


def test_noise_is_one_more_cluster():
    found = kinds.scores(np.array([0, 0, 1, 1]), np.array([-1, -1, 0, -1]))
    assert (found["noise"], found["clusters"], found["purity"]) == (0.75, 2, 0.75)
    assert found["largest"] == 1.5


def test_purity_is_compared_at_equal_effective_clusters():
    curve = [(1.0, 0.2), (4.0, 0.6), (16.0, 0.8)]
    assert above_k_means({"effective": 8.0, "purity": 0.75}, [curve]) == pytest.approx(0.05)
    assert np.isnan(above_k_means({"effective": 17.0, "purity": 0.75}, [curve]))
    assert np.isnan(above_k_means({"effective": 8.0, "purity": 0.75}, []))


def test_files_of_features_keep_their_split(tmp_path):
    X, y = np.arange(40, dtype=np.float16).reshape(20, 2), np.repeat([3, 7], 10)
    np.savez(tmp_path / "features.npz", X=X, y=y, split=np.arange(20) % 4)
    split = load_rows("features", tmp_path)
    np.testing.assert_array_equal(split.train, X[::4].astype(np.float32))
    assert split.train.dtype == np.float32
    np.testing.assert_array_equal(split.y_train, y[::4] // 7)
    assert len(split.test) == 15
    np.savez(tmp_path / "unsplit.npz", X=X, y=y)
    assert len(load_rows("unsplit", tmp_path).test) == 4
    with pytest.raises(FileNotFoundError, match=r"has no absent\.npz"):
        load_rows("absent", tmp_path)


@pytest.mark.slow  # torch imports its compiler for them
@pytest.mark.parametrize("cluster", [turtle, temi])
def test_heads_find_what_k_means_finds(cluster):
    split = load_rows("tiny", None)
    labels, held_out = cluster(split.train, split.test, 3, 0, 80)
    assert clustering_scores(split.y_train, labels).accuracy > 0.9
    assert clustering_scores(split.y_test, held_out).accuracy > 0.9
    again = cluster(split.train, split.test, 3, 0, 80)[0]
    np.testing.assert_array_equal(labels, again)
