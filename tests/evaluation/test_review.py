import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, make_blobs
from sklearn.neighbors import NearestNeighbors

from evaluation import near_duplicates, review_clusters

DIGITS = load_digits()
UNIT = DIGITS.data / np.linalg.norm(DIGITS.data, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(0).integers(0, 12, len(UNIT))


def test_figures_are_those_of_plain_loops(labels):
    review = review_clusters(DIGITS.data, labels, 14, n_neighbors=5)
    neighbors = NearestNeighbors(n_neighbors=6).fit(UNIT).kneighbors(UNIT, return_distance=False)
    for i in range(0, len(UNIT), 41):
        others = [j for j in neighbors[i] if j != i][:5]
        similarities = UNIT[others] @ UNIT[i]
        assert review.outlyingness[i] == pytest.approx(1 - similarities.mean(), abs=1e-6)
        assert review.doubt[i] == pytest.approx(np.mean(labels[others] != labels[i]), abs=1e-6)
        mean = UNIT[labels == labels[i]].mean(axis=0)
        assert review.typicality[i] == pytest.approx(UNIT[i] @ mean / np.linalg.norm(mean))
    for cluster in range(12):
        assert review.tightness[cluster] == pytest.approx(
            review.typicality[labels == cluster].mean()
        )
        assert review.cluster_doubt[cluster] == pytest.approx(
            review.doubt[labels == cluster].mean()
        )
    assert review.counts.tolist() == [*np.bincount(labels), 0, 0]
    assert np.isnan(review.tightness[12:]).all()
    assert np.isnan(review.suspicion[12:]).all()
    assert review.outliers(3).tolist() == np.argsort(-review.outlyingness)[:3].tolist()


def test_skipped_images_are_counted_and_change_nothing(labels):
    whole = review_clusters(UNIT, labels)
    with_holes = np.insert(UNIT, [0, 700], np.nan, axis=0)
    holes = np.insert(labels, [0, 700], [-1, 3])
    review = review_clusters(with_holes, holes)
    kept = np.delete(np.arange(len(with_holes)), [0, 701])
    assert review.n_skipped == 2
    assert np.array_equal(review.searched, kept)
    assert np.array_equal(review.counts, whole.counts)
    assert np.array_equal(review.tightness, whole.tightness)
    assert np.array_equal(review.neighbors, kept[whole.neighbors])
    assert np.isnan(review.typicality[[0, 701]]).all()


def test_a_cluster_of_leftovers_is_suspected():
    rows, blobs = make_blobs(600, centers=12, n_features=30, center_box=(-4, 4), random_state=0)
    noise = np.random.default_rng(0).normal(scale=4, size=(40, 30))
    review = review_clusters(np.concatenate([rows, noise]), [*blobs, *[12] * 40])
    assert review.suspects.tolist() == [12]
    assert (review.outliers(30) >= 600).mean() > 0.9
    assert review_clusters(rows, blobs).suspects.tolist() == []


def test_what_is_loose_or_doubtful_alone_is_no_suspect():
    """Clusters of one image are tight, however far away; cut blobs are doubtful and stand out."""
    rows, blobs = make_blobs(600, centers=12, n_features=30, center_box=(-4, 4), random_state=0)
    alone = np.random.default_rng(0).normal(scale=4, size=(10, 30))
    review = review_clusters(np.concatenate([rows, alone]), [*blobs, *range(12, 22)])
    assert review.suspects.tolist() == []
    cut = np.where((blobs == 3) & (np.arange(600) % 2 == 0), 12, blobs)
    review = review_clusters(rows, cut)
    assert review.cluster_doubt[[3, 12]].min() > 0.4
    assert np.delete(review.cluster_doubt, [3, 12]).max() == 0  # no deviation in the median
    assert review.suspicion[[3, 12]].min() > np.delete(review.suspicion, [3, 12]).max() + 1


def test_neighbours_of_many_images_are_searched_in_a_draw(labels):
    review = review_clusters(UNIT, labels, max_samples=300, random_state=3)
    assert len(review.searched) == 300
    assert np.isin(review.neighbors, review.searched).all()
    assert np.isfinite(review.doubt).sum() == 300
    assert np.isfinite(review.typicality).all()


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (UNIT[:5], [0, 1, 2, 0], "5 rows and labels has 4"),
        (UNIT[:3], [-1, -1, -1], "All 3 images were skipped"),
        (UNIT[:3], [0, 1, 9], "labels hold 9 with n_clusters=3"),
        (np.where(np.eye(3, 64, -2) > 0, np.nan, UNIT[:3]), [-1, 1, 2], r"NaN .*first in row 2"),
    ],
)
def test_what_cannot_be_reviewed(rows, labels, message):
    with pytest.raises(ValueError, match=message):
        review_clusters(rows, labels, 3)


def test_a_single_image():
    review = review_clusters(UNIT[:1], [0])
    assert review.tightness.tolist() == pytest.approx([1])
    assert np.isnan(review.doubt).all()
    assert near_duplicates(UNIT[:1]) == []


def test_duplicates_are_confirmed_by_pixels():
    images = DIGITS.images / 16
    saved_again = np.clip(images[[4, 9]] + 0.01, 0, 1)
    rows = np.concatenate([UNIT, UNIT[[4, 9]]])
    # an embedding that cannot tell two other images apart
    rows[20] = rows[30]
    found = near_duplicates(rows, threshold=0.9999)
    assert [g.tolist() for g in found] == [[4, 1797], [9, 1798], [20, 30]]
    shown = np.concatenate([images, saved_again])
    assert [g.tolist() for g in near_duplicates(rows, shown)] == [[4, 1797], [9, 1798]]
    wide = [np.repeat(image, 3, axis=1) if i == 1797 else image for i, image in enumerate(shown)]
    assert [g.tolist() for g in near_duplicates(rows, wide)] == [[9, 1798]]


def test_chains_are_one_group_the_largest_first():
    angles = np.array([0.0, 2.0, 0.04, 2.04, 0.08, 1.0])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rows = np.insert(rows, 1, np.nan, axis=0)
    groups = near_duplicates(rows, threshold=np.cos(0.05))
    assert [group.tolist() for group in groups] == [[0, 3, 5], [2, 4]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", [1, 1e-9])
def test_planted_junk_is_odd_whatever_the_embedding_thinks(seed, spread):
    """Black, white, gray and noise among digits; embeddings of no use in the second case."""
    generator = np.random.default_rng(seed)
    flat = [np.full((8, 8), value) for value in (0, 0.5, 1)]
    noise = generator.random((2, 8, 8))
    images = np.concatenate([load_digits().images[:300] / 16, flat, noise])
    order = generator.permutation(305)
    images, junk = images[order], np.flatnonzero(order >= 300)
    rows = generator.normal(size=(305, 4)) * spread + 1
    review = review_clusters(rows, np.arange(305) % 9, images=images)
    assert np.isin(junk, review.outliers(10)).all()
    by_embedding = np.argsort(-review.outlyingness, kind="stable")
    assert np.isin(by_embedding[:5], review.outliers(10)).all()
    assert len(set(review.outliers(305))) == 305
    pictures = [Image.fromarray((image * 255).astype(np.uint8)) for image in images]
    again = review_clusters(rows, np.arange(305) % 9, images=pictures)
    assert np.isin(junk, again.outliers(10)).all()


def test_pixels_of_skipped_images_and_of_equal_ones():
    rows, labels = np.eye(6), np.array([0, 0, -1, 1, 1, 1])
    white = np.ones((4, 4))
    review = review_clusters(rows, labels, images=[white, white, None, white, white, white])
    assert np.isnan(review.pixel_deviation[2])
    assert not np.nan_to_num(review.pixel_deviation).any()
    review = review_clusters(rows, labels, images=[np.eye(4)] * 2 + [None] + [np.ones((1, 9))] * 3)
    assert np.isfinite(review.pixel_deviation[[0, 1, 3, 4, 5]]).all()
