"""The page of the report, in a browser."""

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.cluster.hierarchy import fcluster

from evaluation import Projection, review_clusters, write_report
from tests.evaluation.small_report import HOSTILE, K, digits

pytestmark = pytest.mark.slow
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
        assert page.inner_text("#found") == "100 of the 100 shown images in 20 clusters"
