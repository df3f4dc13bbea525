import base64
import io
import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

from evaluation import Projection, review_clusters, write_report
from evaluation.report_charts import history_charts
from evaluation.report_images import make_thumbnails

K = 70
HOSTILE = "<img src=x onerror=alert(1)>\"'&\u2028.png"


def digits(n=600):
    rows = load_digits()
    return SimpleNamespace(data=rows.data[:n], images=rows.images[:n] / 16, target=rows.target[:n])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report of 600 digits in 70 clusters, two of them empty, and what went into it."""
    found = digits()
    kmeans = KMeans(K - 2, n_init=1, random_state=0).fit(found.data)
    labels = kmeans.labels_.copy()
    labels[np.arange(20, 580, 40)] = 3  # what looks like nothing else in there
    labels[7] = -1
    centers = np.concatenate([kmeans.cluster_centers_, kmeans.cluster_centers_[:2] + 1])
    names = [f"digits/{i:04d}.png" for i in range(len(labels))]
    names[11] = HOSTILE
    history = [
        {"epoch": i, "loss": 4 - i / 9, "projector_loss": 4.1 - i / 9, "empty_fraction": None}
        for i in range(5)
    ]
    generator = np.random.default_rng(0)
    coordinates = generator.random((599, 2), np.float32)
    projection = Projection(coordinates, np.flatnonzero(labels >= 0), "tsne", "made up")
    given = {
        "embeddings": found.data,
        "labels": labels,
        "n_clusters": K,
        "images": found.images,
        "names": names,
        "y": found.target,
        "linkage": linkage(centers, "ward"),
        "history": history,
        "params": {"K": K, "random_state": 0, "weight_decay": (1e-4, 1e-4)},
        "baseline": {"by chance": generator.permutation(labels % 5)},
        "projection": projection,
        "title": "Digits <3",
    }
    path = tmp_path_factory.mktemp("report") / "report.html"
    return SimpleNamespace(path=path, given=given, summary=write_report(path, **given))


def data_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_what_is_in_the_file(written):
    summary = written.summary
    text = written.path.read_text(encoding="utf-8")
    assert summary.path == written.path
    assert summary.n_bytes == written.path.stat().st_size < 400_000
    assert (summary.n_images, summary.n_shown, summary.n_skipped) == (599, 599, 1)
    assert not re.search(r"(?:https?:)?//[a-z]", text.split('id="data"')[0].replace("// ", ""))
    assert "Digits &lt;3" in text
    assert "<img" not in text
    assert "1 more could not be used" in text
    assert HOSTILE in data_of(written.path)["names"]
    review = review_clusters(written.given["embeddings"], written.given["labels"], K)
    assert summary.suspects == tuple(review.suspects)
    assert summary.suspects[0] == 3


def test_the_same_input_gives_the_same_file(written, tmp_path):
    write_report(tmp_path / "again.html", **written.given)
    assert (tmp_path / "again.html").read_bytes() == written.path.read_bytes()


def test_arrays_alone_are_enough(tmp_path):
    found = digits(40)
    summary = write_report(
        tmp_path / "a.html", embeddings=found.data, labels=np.arange(40) % 3, random_state=1
    )
    assert summary.n_shown == 40
    data = data_of(summary.path)
    assert data["names"][3] == "image 3"
    assert "thumbnails" not in data


def test_what_the_curves_are_is_said_by_whoever_knows(tmp_path):
    history = [{"epoch": i, "val_loss": 1.0 - i, "once": 1.0 if i else None} for i in range(2)]
    given = {"embeddings": np.eye(4), "labels": [0, 0, 1, 1], "history": history}
    meanings = {"val_loss": "of what <is> held out", "once": "not on a chart"}
    write_report(tmp_path / "a.html", history_meanings=meanings, **given)
    text = (tmp_path / "a.html").read_text()
    assert "<dt>val loss</dt><dd>of what &lt;is&gt; held out</dd>" in text
    assert "not on a chart" not in text


def test_what_is_odd_has_positions(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (60, 16, 16, 3), np.uint8)
    images[20] = images[7]
    images[5], images[30] = 0, rng.integers(254, 256, (16, 16, 3))  # black, and white with noise
    rows = np.ones((60, 4)) + rng.normal(0, 0.01, (60, 4))  # all alike: no neighbour tells
    rows[50], rows[20] = -1, rows[7]
    summary = write_report(
        tmp_path / "a.html", embeddings=rows, labels=np.arange(60) % 3, images=images
    )
    assert set(summary.outliers[:2]) <= {5, 30, 50}
    assert {5, 30, 50} <= set(summary.outliers)
    assert len(summary.outliers) == 24
    assert (7, 20) in summary.duplicates
    assert data_of(summary.path)["outliers"] == list(summary.outliers)


def test_a_baseline_has_a_number_of_clusters_of_its_own(written):
    text = written.path.read_text(encoding="utf-8")
    row = re.search(r"by chance</th>(.*?)</tr>", text)[1]
    cells = re.findall(r"<td>(.*?)</td>", row)
    assert cells[:2] == ["5", "0.0 %"]


def test_labels_of_a_baseline_may_be_a_tuple(tmp_path):
    summary = write_report(
        tmp_path / "a.html", embeddings=np.eye(4), labels=[0, 0, 1, 1], baseline={"b": (0, 1, 2, 3)}
    )
    assert "<td>4</td>" in summary.path.read_text()


def test_an_unknown_class_of_a_skipped_image_is_no_matter(tmp_path):
    y = ["a", None, "b", "b", "b"]
    rows = np.insert(np.eye(4), 1, np.nan, axis=0)
    summary = write_report(tmp_path / "a.html", embeddings=rows, labels=[0, -1, 1, 1, 1], y=y)
    assert (summary.n_images, summary.n_skipped) == (4, 1)


def test_names_are_taken_in_their_order(tmp_path):
    names = pd.Series(["a", "b", "c", "d"], index=[3, 2, 1, 0])
    summary = write_report(
        tmp_path / "a.html", embeddings=np.eye(4), labels=[0, 0, 1, 1], names=names
    )
    assert data_of(summary.path)["names"] == ["a", "b", "c", "d"]


def test_images_that_are_all_the_same(tmp_path):
    summary = write_report(
        tmp_path / "a.html",
        embeddings=np.zeros((9, 3)),
        labels=np.arange(9) % 2,
        images=np.zeros((9, 8, 8)),
        title="",
    )
    assert "<title>Clusters</title>" in summary.path.read_text()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_hardly_any_images(n, tmp_path):
    found = digits(n)
    summary = write_report(
        tmp_path / "a.html",
        embeddings=found.data,
        labels=np.zeros(n, int),
        images=found.images,
        linkage=np.empty((0, 4)),
    )
    assert summary.n_shown == n


def test_of_many_images_the_typical_the_odd_and_a_draw_are_shown(tmp_path):
    found = digits(600)
    labels = np.random.default_rng(0).integers(0, 20, 600)

    class Images:
        def __len__(self):
            return 600

        def __getitem__(self, index):
            return found.images[index]

    summary = write_report(
        tmp_path / "a.html", embeddings=found.data, labels=labels, images=Images(), max_images=100
    )
    assert (summary.n_images, summary.n_shown) == (600, 100)
    data = data_of(summary.path)
    shown = {int(name.split()[1]) for name in data["names"]}
    review = review_clusters(found.data, labels)
    for cluster in range(20):  # two places for each of twenty
        typical = np.argsort(np.where(labels == cluster, -review.typicality, np.inf))[:2]
        assert shown.issuperset(typical.tolist())
    assert shown.issuperset(review.outliers(24).tolist())
    assert len(data["outliers"]) == 24


def test_shares_of_classes_are_those_of_all_images(browser, tmp_path):
    found = digits(600)
    labels = np.random.default_rng(0).integers(0, 20, 600)
    path = tmp_path / "a.html"
    write_report(path, embeddings=found.data, labels=labels, y=found.target, max_images=100)
    with opened(browser, path) as page:
        for cluster in range(20):
            counts = np.bincount(found.target[labels == cluster])
            told = f"{100 * counts.max() / counts.sum():.0f} % are {counts.argmax()}"
            assert page.evaluate(f"clusterFacts(report, {cluster})").endswith(told)
        page.fill("#search", "image")
        assert page.inner_text("#found") == "100 images, of the 100 that are shown, in 20 clusters"


def test_thumbnails_are_the_images_and_small_ones_keep_every_pixel():
    found = digits(100)
    thumbnails = make_thumbnails(found.images, np.arange(1, 100))
    assert (thumbnails.tile, len(thumbnails.sheets), thumbnails.exact) == (8, 1, True)
    sheet = Image.open(io.BytesIO(base64.b64decode(thumbnails.sheets[0]))).convert("RGB")
    for row, image in enumerate(found.images[1:]):
        x, y = row % thumbnails.columns * 8, row // thumbnails.columns * 8
        shown = np.asarray(sheet.crop((x, y, x + 8, y + 8)))
        assert np.array_equal(shown[..., 0], np.round(image * 255))


def test_thumbnails_of_photos_keep_their_shape_and_fill_several_sheets():
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (200, 100 + i % 3, 3), np.uint8) for i in range(300)]
    thumbnails = make_thumbnails(images, np.arange(300))
    assert (thumbnails.tile, thumbnails.columns, thumbnails.per_sheet) == (128, 16, 256)
    assert not thumbnails.exact
    assert len(thumbnails.sheets) == 2
    assert set(thumbnails.heights) == {128}
    assert set(thumbnails.widths) == {64, 65}


def test_photos_that_had_to_be_shrunk_far_are_photos_still(monkeypatch):
    """Kept to the last bit, they would take several times the room."""
    monkeypatch.setattr("evaluation.report_images._BUDGET", 10_000)
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (100, 100, 3), np.uint8) for _ in range(300)]
    thumbnails = make_thumbnails(images, np.arange(300))
    assert (thumbnails.tile, thumbnails.exact) == (32, False)


def test_charts_of_a_history():
    history = [
        {"epoch": e, "loss": 3 - e, "projector_loss": 2.5 - e, "size": e, "size_plain": 2 * e,
         "once": 1.0 if e else float("nan"), "never": None}
        for e in range(3)
    ]  # fmt: skip
    charts = history_charts(history[:2])
    assert [(title, lines) for title, _, lines in charts] == [
        ("Loss", ["loss", "projector loss"]),
        ("Size", ["size", "size plain"]),
    ]
    assert "loss from 3 to 2; projector loss from 2.5 to 1.5" in charts[0][1]
    assert history_charts(history[:1]) == []


def never(*_, **__):
    raise AssertionError("worked before everything was checked")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": [None] * 600}, "y holds NaN or None"),
        ({"labels": [0, 1]}, "600 rows and labels has 2"),
        ({"names": ["a"]}, "names has 1"),
        ({"images": np.zeros((3, 8, 8))}, "images has 3"),
        ({"y": [1, 2]}, "y has 2"),
        ({"linkage": np.zeros((3, 4))}, r"linkage has shape \(3, 4\)"),
        ({"baseline": {"other": [0]}}, "labels of 'other' has 1"),
        ({"max_images": 2}, "max_images=2"),
        ({"n_clusters": 3}, "n_clusters=3"),
        ({"baseline": {"other": [-1] * 600}}, "labels of 'other' are -1"),
        ({"projection": Projection(np.zeros((1, 2)), np.array([7]), "", "")}, "skipped"),
        (
            {"projection": Projection(np.zeros((1, 2)), np.array([999]), "", "")},
            "not among the 600",
        ),
        ({"projection": Projection(np.zeros((1, 2)), np.arange(2), "", "")}, r"\(1, 2\) and 2"),
        ({"projection": Projection(np.full((1, 2), np.nan), np.arange(1), "", "")}, "two finite"),
        ({"projection": Projection(np.zeros((0, 2)), np.arange(0), "", "")}, "at least one image"),
    ],
)
def test_what_does_not_fit_together(written, changed, message, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.report.review_clusters", never)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "a.html", **{**written.given, **changed})
    assert not list(tmp_path.iterdir())


def test_whether_it_can_be_written_is_tried_first(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.report.review_clusters", never)
    given = {"embeddings": np.eye(4), "labels": [0, 1, 2, 3]}
    with pytest.raises(IsADirectoryError, match="needed a file"):
        write_report(tmp_path, **given)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        write_report(tmp_path / "a" / "b.html", **given)
    with pytest.raises(OSError, match="proc"):
        write_report("/proc/report.html", **given)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no plain file"):
        write_report(tmp_path / "pipe", **given)


def test_a_link_and_files_of_like_names_stay_what_they_are(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "real.html", tmp_path / "report.html"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    mine = tmp_path / "report.html.partial"
    mine.write_text("mine")
    summary = write_report(link, embeddings=np.eye(5), labels=[0, 1, 2, 3, 4])
    assert link.is_symlink()
    assert summary.path == target.resolve()
    assert "<!doctype html>" in target.read_text()
    assert target.stat().st_mode & 0o777 == 0o640
    assert mine.read_text() == "mine"
    assert sorted(path.name for path in target.parent.iterdir()) == ["real.html"]


def test_a_failure_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_report(path, embeddings=np.eye(5), labels=[0, 1, 2, 3, 4])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium, which tests of the report need: apt-get install chromium")
        pytest.skip("no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, written):
    """The report in a browser; in the end it complained of nothing, and asked for nothing else."""
    with opened(browser, written.path) as page:
        yield page


class opened:
    def __init__(self, browser, path, **options):
        self.context = browser.new_context(**options)
        self.path = path

    def __enter__(self):
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(self.path.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached")
        return self.page

    def __exit__(self, kind, *_):
        self.context.close()
        if kind is None:
            assert self.said == []
            assert {url.split(":")[0] for url in self.asked} <= {"file", "blob"}
            assert [url for url in self.asked if url.startswith("file")] == [self.path.as_uri()]


def cards(page):
    found = page.eval_on_selector_all("#list .cluster", "all => all.map(e => e.dataset.cluster)")
    return [int(each) for each in found]


def test_clusters_are_sorted_and_filtered(page, written):
    labels = written.given["labels"]
    review = review_clusters(written.given["embeddings"], labels, K)
    counts = np.bincount(labels[labels >= 0], minlength=K)
    used = np.flatnonzero(counts)
    assert len(cards(page)) == 60
    page.click("#more")
    assert cards(page) == used[np.argsort(-counts[used], kind="stable")].tolist()
    assert page.locator("#more").is_hidden()
    for value, key in {
        "smallest": counts[used],
        "tight": -review.tightness[used].astype(np.float32),
        "loose": review.tightness[used].astype(np.float32),
        "doubt": -review.cluster_doubt[used].astype(np.float32),
        "id": used,
    }.items():
        page.select_option("#sort", value)
        assert cards(page) == used[np.argsort(key, kind="stable")][:60].tolist(), value
    page.select_option("#filter", "suspect")
    assert sorted(cards(page)) == sorted(review.suspects)
    page.select_option("#filter", "empty")
    assert cards(page) == [K - 2, K - 1]
    assert page.inner_text("#found") == "2 clusters"


@pytest.mark.parametrize("width", [1280, 420])
def test_clusters_out_of_sight_take_the_room_that_they_will_take(browser, written, width):
    """Otherwise the page moves under whoever scrolls it, and under their clicks."""
    heights = "[...document.querySelectorAll('#list .cluster')].map(e => e.offsetHeight)"
    with opened(browser, written.path, viewport={"width": width, "height": 720}) as page:
        expected = page.evaluate(heights)
        page.add_style_tag(content=".cluster { content-visibility: visible !important; }")
        np.testing.assert_allclose(expected, page.evaluate(heights), atol=5)


def test_file_names_are_searched_and_never_run(page, written):
    labels = written.given["labels"]
    page.fill("#search", "01")
    named = [i for i, name in enumerate(written.given["names"]) if "01" in name and labels[i] >= 0]
    assert sorted(cards(page)) == sorted(set(labels[named]))[:60]
    assert page.inner_text("#found").startswith(f"{len(named)} images in")
    page.fill("#search", "ONERROR")
    assert cards(page) == [labels[11]]
    found = page.locator("#list .found button")
    assert found.get_attribute("aria-label") == HOSTILE
    found.click()
    assert page.locator("#details-title").inner_text().startswith("<img src=x")
    assert page.locator("#details img").count() == 0
    page.keyboard.press("Escape")
    page.fill("#search", "no such file")
    assert cards(page) == []
    assert page.inner_text("#found") == "0 images in 0 clusters"


def test_a_cluster_whose_doubt_is_not_known_comes_last(page):
    page.evaluate("for (let i = 0; i < report.K; i += 3) report.clusterDoubt[i] = NaN")
    page.select_option("#sort", "doubt")
    doubt = page.evaluate("clusters.clusters.map(each => report.clusterDoubt[each])")
    known = [each for each in doubt if each is not None and not np.isnan(each)]
    assert known == sorted(known, reverse=True)
    assert np.isnan(np.array(doubt[len(known) :], float)).all()
    assert len(doubt) - len(known) > 10


def test_thousands_of_images_are_not_put_on_the_page_at_once(browser, tmp_path):
    n = 3000
    path = tmp_path / "a.html"
    flat = Projection(np.random.default_rng(0).random((n, 2), np.float32), np.arange(n), "", "")
    write_report(path, embeddings=np.ones((n, 3)), labels=np.zeros(n, int), projection=flat)
    with opened(browser, path) as page:
        assert page.locator("#duplicates button").count() < 100
        page.evaluate("select(0)")
        assert page.locator("#selection .strip button").count() == 60
        page.click("#selection .more")
        assert page.locator("#selection .strip button").count() == 660


def test_a_finger_shows_selects_and_moves(browser, written):
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with opened(browser, written.path, **options) as page:
        here = lonely(written.given["projection"].coordinates)
        cluster = written.given["labels"][written.given["projection"].indices[here]]
        x, y = screen_place(page, here)
        page.touchscreen.tap(x, y)
        assert page.locator("#tip").is_visible()
        assert page.inner_text("#selection-title") == f"Cluster {cluster}"
        page.locator("#zoom-in").tap()
        page.locator("#zoom-in").tap()
        page.locator("#canvas").scroll_into_view_if_needed()
        box = page.locator("#canvas").bounding_box()
        before = page.evaluate("map.center.x")
        touch = page.context.new_cdp_session(page)

        def send(kind, *points):
            at = [{"x": box["x"] + 200 + dx, "y": box["y"] + 200, "id": i} for i, dx in points]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

        send("touchStart", (0, 0))
        for dx in (20, 60, 100):
            send("touchMove", (0, dx))
        send("touchEnd")
        moved = page.evaluate("map.center.x")
        assert moved < before
        assert page.inner_text("#selection-title") == f"Cluster {cluster}"
        zoom = page.evaluate("map.zoom")
        send("touchStart", (0, 0), (1, 40))
        send("touchMove", (0, -40), (1, 80))
        send("touchEnd")
        assert page.evaluate("map.zoom") > 1.5 * zoom


def test_what_was_selected_elsewhere_has_the_focus(page):
    page.focus("#list .cluster:nth-child(30) h3 button")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "selection-title"
    assert page.get_attribute("#list .selected h3 button", "aria-pressed") == "true"
    page.focus("#canvas")
    zoom = page.evaluate("map.zoom")
    page.keyboard.press("Control++")
    assert page.evaluate("map.zoom") == zoom


def screen_place(page, image):
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    x, y = page.evaluate(f"map.toScreen({image})")
    return box["x"] + x, box["y"] + y


def lonely(coordinates):
    """The point farthest from its nearest neighbour."""
    distances = np.linalg.norm(coordinates[:, None] - coordinates[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return int(distances.min(axis=1).argmax())


def test_pointing_shows_an_image_and_a_click_selects_its_cluster(page, written):
    here = lonely(written.given["projection"].coordinates)
    image = written.given["projection"].indices[here]
    cluster = written.given["labels"][image]
    x, y = screen_place(page, here)
    page.mouse.move(x + 2, y)
    assert written.given["names"][image] in page.inner_text("#tip")
    page.mouse.down()
    page.mouse.up()
    assert page.inner_text("#selection-title") == f"Cluster {cluster}"
    shown = page.eval_on_selector_all("#selection button", "all => all.map(e => e.ariaLabel)")
    members = np.flatnonzero(written.given["labels"] == cluster)
    assert sorted(shown) == sorted(written.given["names"][i] for i in members)
    assert page.inner_text("#announce").startswith(f"Selected cluster {cluster}:")


def test_a_keyboard_is_enough(page, written):
    page.focus("#canvas")
    page.keyboard.press("ArrowRight")
    first = page.evaluate("map.focus")
    page.keyboard.press("ArrowRight")
    second = page.evaluate("map.focus")
    assert page.evaluate(f"map.toScreen({second})[0] > map.toScreen({first})[0]")
    image = written.given["projection"].indices[second]
    assert page.inner_text("#announce").startswith(written.given["names"][image])
    page.keyboard.press("Enter")
    assert page.inner_text("#selection-title") == f"Cluster {written.given['labels'][image]}"
    page.keyboard.press("+")
    assert page.evaluate("map.zoom") > 1
    page.keyboard.press("Escape")
    assert page.inner_text("#selection-title") == "No cluster selected"
    # a strip of images is one stop; arrows go along it, and Enter opens an image
    page.focus("#list .cluster:first-child .strip button")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(
        "document.activeElement === document.querySelectorAll('#list .strip button')[1]"
    )
    page.keyboard.press("Enter")
    assert page.locator("#details").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#details").is_hidden()


@pytest.mark.parametrize("wanted", [2, 10, 33])
def test_groups_are_those_of_scipy(page, written, wanted):
    groups = page.evaluate(f"Array.from(cutTree(report, {wanted}))")
    expected = fcluster(written.given["linkage"], wanted, "maxclust")
    assert len(set(zip(groups, expected, strict=True))) == wanted == len(set(groups))
    page.fill("#groups", str(wanted))
    assert page.inner_text("#groups-value") == str(wanted)
    assert page.locator("#legend li").count() == (wanted if wanted <= 20 else 0)


def test_every_coloring_colours_every_image(page):
    for name in page.eval_on_selector_all("#color option", "all => all.map(e => e.value)"):
        page.select_option("#color", name)
        colors = page.evaluate("map.colors.filter(color => CSS.supports('color', color)).length")
        assert colors == page.evaluate("report.n"), name
    assert page.locator("#groups-control").is_hidden()


def test_an_image_is_shown_as_it_is(browser, tmp_path):
    """Every thumbnail has a colour of its own, and the browser shows that one, on any sheet."""
    side, n = 32, 4200
    codes = np.arange(n) * 3001 % 2**24
    shades = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.uint8)
    images = np.broadcast_to(shades[:, None, None], (n, side, side, 3))
    flat = Projection(np.zeros((n, 2), np.float32), np.arange(n), "", "")
    path = tmp_path / "a.html"
    generator = np.random.default_rng(0)
    write_report(
        path,
        embeddings=generator.normal(size=(n, 3)),
        labels=np.zeros(n, int),
        images=images,
        projection=flat,
    )
    with opened(browser, path) as page:
        for image in (0, 65, 4095, 4096, 4199):
            page.evaluate(f"byId('selection-body').replaceChildren(picture(report, {image}))")
            thumb = page.locator("#selection .thumb")
            thumb.scroll_into_view_if_needed()
            shot = Image.open(io.BytesIO(thumb.screenshot())).convert("RGB")
            seen = np.asarray(shot)[8:-8, 8:-8].reshape(-1, 3)
            assert (seen == shades[image]).all(), image


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_is_wider_than_the_screen(browser, written, width):
    with opened(browser, written.path, viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("scheme", "dialog"), [("light", False), ("dark", False), ("light", True)])
def test_accessibility(browser, written, scheme, dialog):
    """No violation of WCAG 2 A and AA that axe-core finds, contrast included."""
    from axe_core_python.sync_playwright import Axe

    with opened(browser, written.path, color_scheme=scheme, bypass_csp=True) as page:
        lightness = page.evaluate(
            "parseInt(getComputedStyle(document.body).backgroundColor.slice(4))"
        )
        assert (lightness < 60) == (scheme == "dark")
        page.evaluate("select(report.label[0])")
        if dialog:
            page.evaluate("openDetails(0)")
            assert page.evaluate("document.activeElement.id") == "details-title"
        options = {"runOnly": ["wcag2a", "wcag2aa"], "resultTypes": ["violations"]}
        result = Axe().run(page, options=options)
        assert [(each["id"], each["nodes"][0]["html"][:200]) for each in result["violations"]] == []
