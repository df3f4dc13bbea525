"""The study: its cells, and the page it writes."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("lightly", reason="installed by `make slow`")
from benchmarks import cells, learning, results
from benchmarks.cells import Cell
from benchmarks.data_sets import AS_EMBEDDINGS, AS_ROWS, MORE_HELD_OUT, load
from benchmarks.figures import k_means, settled_k_means
from evaluation import cluster_occupancy, clustering_scores
from sklearn_excb import ExCBEstimator
from sklearn_excb.settings.resolve import Facts
from tests.small_runs import BreaksOffError, breaking_off

pytestmark = pytest.mark.slow


def test_the_page_has_a_place_for_every_table():
    places = re.findall(r"<!-- table: (.*) -->", (results.DOCS / "results.md").read_text())
    assert sorted(places) == sorted(results.tables())


def test_settings_added_later_leave_stored_results_valid():
    of_study = [*cells.study("digits"), *cells.study("rows")]
    stored = [cell for cell in of_study if cell.path.exists()]
    assert len(stored) > 60
    assert [str(cell) for cell in stored if cell.result is None] == []


def test_cells_of_other_runs_lie_elsewhere():
    cell = Cell("digits", "ExCB", 0)
    others = [
        replace(cell, seed=1),
        replace(cell, method="Sinkhorn"),
        replace(cell, changed={"rate": 2.0}),
        replace(cell, validation=True),
    ]
    assert len({of.path for of in (cell, *others)}) == 5


def test_parameters_that_are_said_by_what_a_rule_gives():
    facts = Facts(1437, "images", (8, 8), 1)  # 770 steps; the rule's rate is .075
    slower = Cell("digits", "lightly DINO, slower teacher", 0).parameters(facts)
    assert slower == {"teacher_momentum": pytest.approx(1 - 20 / 770)}
    twice = Cell("digits", "centering", 0, {"rate": 2.0}).parameters(facts)
    assert twice == {"balancing": "centering", "learning_rate": pytest.approx(0.15)}


def test_embeddings_are_stale_once_a_rule_for_images_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    digits, cell = load("digits", None, most=120), Cell("digits" + AS_EMBEDDINGS, "k-means", 0)
    images = learning.measure(Cell("digits", "k-means", 0), digits)
    rows = digits._replace(
        train=learning.raw_pixels(digits.train),
        test=learning.raw_pixels(digits.test),
        origin={"facts": images["facts"], "settings": images["settings"]},
    )
    learning.write(cell, learning.measure(cell, rows))
    stored = json.loads(cell.path.read_text())
    assert cell.result == stored
    stored["origin"]["settings"]["teacher_momentum"] = 0.5
    cell.path.write_text(json.dumps(stored))
    assert cell.result is None


def test_settled_k_means_is_more_even():
    digits = load("digits", None, most=400)
    rows = learning.raw_pixels(digits.train), learning.raw_pixels(digits.test)
    excb = ExCBEstimator(K=20, random_state=0)
    settings = cells.resolved(excb, Facts(len(rows[0]), "rows", (0, 0), 64))
    settled, plain = settled_k_means(*rows, settings, 0), k_means(*rows, 20, 0)
    used = [cluster_occupancy(of[0], 20).effective_clusters for of in (settled, plain)]
    assert used[0] > used[1]
    assert settled[1].shape == (len(rows[1]),)
    assert clustering_scores(digits.y_test, settled[1]).nmi > 0.6


def test_a_cell_is_missing_once_a_rule_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    cell = Cell("digits", "raw pixels", 0)
    assert cell.result is None
    learning.write(cell, learning.measure(cell, load("digits", None)))
    assert cell.result is not None
    assert [file.suffix for file in tmp_path.iterdir()] == [".json"]
    stored = json.loads(cell.path.read_text())
    stored["settings"]["epochs"] += 1
    cell.path.write_text(json.dumps(stored))
    assert cell.result is None


def test_a_cell_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    few = {"K": 5, "epochs": 2, "batch_size": 32, "image_size": 12, "n_local": 0, "head_width": 16}
    digits, cell = load("digits", None, most=120), Cell("digits", "ExCB", 0, few)
    cell.path.with_suffix(".0.states").mkdir()  # of other settings
    never = learning.measure(cell, digits)
    learning.write(cell, never)
    assert [file.name for file in tmp_path.iterdir()] == [cell.path.name]
    with breaking_off(after=4), pytest.raises(BreaksOffError):
        learning.measure(cell, digits)
    again = learning.measure(cell, digits)
    learning.write(cell, again)
    assert [file.name for file in tmp_path.iterdir()] == [cell.path.name]
    assert never.pop("seconds") > 0
    assert np.isnan(again.pop("seconds"))
    assert json.dumps(again) == json.dumps(never)
    assert (read := cell.result) is not None
    assert np.isnan(learning.seconds_of(read))
    assert "nan s" in learning.summary(read)


def test_differences_that_exceed_two_standard_errors_are_called_so():
    ours = [{"knn": right / 360} for right in (357, 357, 358)]
    for right, verdict in ((358, ""), (359, ", **lower**"), (355, ", higher")):  # 2, 5 and 7
        said = results.difference(ours, [{"knn": right / 360}] * 3, "knn")
        assert said.endswith("0.001" + verdict)


def test_some_cells_of_a_study(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    chosen = ["list", "--methods", "ExCB", "raw pixels", "--seeds", "0", "2"]
    monkeypatch.setattr("sys.argv", ["learning", *chosen])
    learning.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"digits: {method}, seed {seed}: missing"
        for seed in (0, 2)
        for method in ("ExCB", "raw pixels")
    ]


def test_a_study_of_several_sets_goes_on_without_data_and_one_of_a_set_does_not(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["learning", "run", "--study", "mnist10k_npm"])
    with pytest.raises(ValueError, match="needs --data"):
        learning.main()
    measured = []
    monkeypatch.setattr(learning, "measure", lambda cell, split: cell.data)
    monkeypatch.setattr(learning, "write", lambda cell, result: measured.append(result))
    monkeypatch.setattr("sys.argv", ["learning", "run", "--study", "settling", "--seeds", "0"])
    learning.main()
    assert measured == ["digits"]
    assert "packed_clothing_short160: Sinkhorn" in capsys.readouterr().out


def test_rows_of_a_table_name_their_data_and_what_was_measured_in_another_precision(monkeypatch):
    found = [
        Cell(data, method, 0)
        for data in ("digits", "digits" + AS_ROWS)
        for method in ("ExCB", "centering", "Sinkhorn")
    ]
    measured = {
        cell.path: {"settings": {"precision": precision}}
        for cell, precision in zip(found[:-1], ("bf16", "32", "bf16", "32", "32"), strict=True)
    }
    monkeypatch.setattr(Cell, "result", property(lambda cell: measured.get(cell.path)))
    lines = results.table(results.rows_by_data(found), {"one": (lambda result: 1.0, "{:.0f}")})
    assert lines.splitlines()[2:] == [
        "| Digits: ExCB | 1 | 1 |",
        "| Digits: centering † | 1 | 1 |",
        "| Digits: Sinkhorn | 1 | 1 |",
        "| Digits as rows: ExCB | 1 | 1 |",
        "| Digits as rows: centering | 1 | 1 |",
        "| Digits as rows: Sinkhorn | 0 of 1 | missing |",
    ]


def test_validation_leaves_the_held_out_images_alone():
    study, tuning = load("digits", None), load("digits", None, validation=True)
    train, test = ({image.tobytes() for image in part} for part in (study.train, study.test))
    used = {image.tobytes() for part in (tuning.train, tuning.test) for image in part}
    assert train.isdisjoint(test)
    assert used == train


def test_more_held_out_are_those_that_were_not_drawn(tmp_path):
    labels = np.arange(60) % 2
    images = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None], (60, 8, 8))
    np.savez(tmp_path / "squares.npz", images=images, labels=labels)
    few = load("squares", tmp_path, most=40)
    more = load("squares" + MORE_HELD_OUT, tmp_path, most=40)
    np.testing.assert_array_equal(more.train, few.train)
    np.testing.assert_array_equal(more.test[:8], few.test)
    found = np.concatenate([more.train, more.test])[:, 0, 0]
    assert sorted(found) == list(range(60))
    np.testing.assert_array_equal(more.y_test, more.test[:, 0, 0] % 2)
    with pytest.raises(ValueError, match="no image that is not drawn"):
        load("squares" + MORE_HELD_OUT, tmp_path)


def test_vectors_are_the_images_of_the_study_or_what_excb_makes_of_them(monkeypatch):
    monkeypatch.setattr(learning.ExCBEstimator, "fit", lambda excb, images: excb)
    monkeypatch.setattr(learning.ExCBEstimator, "transform", lambda excb, images: 2 * images)
    images, rows, embedded = (
        learning.split_of(Cell(f"digits{of}", "ExCB", 0), None)
        for of in ("", AS_ROWS, AS_EMBEDDINGS)
    )
    learning._embeddings.cache_clear()  # as nobody else wants these
    with pytest.raises(ValueError, match="cannot use validation=True"):
        learning.split_of(Cell("digits" + AS_EMBEDDINGS, "ExCB", 0, validation=True), None)
    np.testing.assert_array_equal(rows.test, np.float32(images.test).reshape(360, 64))
    np.testing.assert_array_equal(embedded.train, 2 * images.train)
    for split in (rows, embedded):
        np.testing.assert_array_equal(split.y_test, images.y_test)
    assert images.origin is None
    assert embedded.origin is not None
    assert embedded.origin["settings"]["K"] == 74
    assert learning.raw_pixels(np.ones((3, 100))).shape == (3, 100)


def test_classes_of_a_folder_are_numbered(tmp_path):
    from PIL import Image

    for i in range(20):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 8 + i, 3), i, np.uint8)).save(folder / f"{i}.png")
    with pytest.raises(ValueError, match="several sizes"):
        load("photos" + AS_ROWS, tmp_path)
    (tmp_path / "photos").rename(tmp_path / "photos as they are")
    split = load("photos as they are", tmp_path)
    assert sorted({*split.y_train, *split.y_test}) == [0, 1]
    with pytest.raises(FileNotFoundError, match="holds neither"):
        load("nothing", tmp_path)
