"""Long fits are told of in time, with a recipe that takes less."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from sklearn_excb import DurationWarning, ExCBEstimator
from sklearn_excb.fitting import duration as durations
from sklearn_excb.fitting.duration import Pace, advice_if_long, duration, work
from sklearn_excb.settings.recipes import RECIPES
from sklearn_excb.settings.resolve import Facts

CPU = torch.device("cpu")
PHOTOS = Facts(3_000, "images", (160, 160), 3)


def parameters(**chosen):
    return ExCBEstimator(**chosen).get_params(deep=False)


def test_a_pace_leaves_out_the_first_step_and_is_told_once():
    times = iter([0.0, 2.0, 4.0, 6.0])
    pace = Pace(lambda: next(times))
    assert [pace.step() for _ in range(6)] == [None, None, None, 2.0, None, None]
    quick_times = iter(np.arange(100) * 0.1)
    quick = Pace(lambda: next(quick_times))
    told = [quick.step() for _ in range(90)]
    assert told[:50] == [None] * 50  # five seconds at the least
    assert [pace for pace in told if pace] == [pytest.approx(0.1)]


def test_a_step_that_was_held_up_says_nothing_of_the_others():
    times = iter([0.0, 0.2, 30.2, 30.4, 30.6])
    pace = Pace(lambda: next(times))
    assert [pace.step() for _ in range(4)] == [None, None, None, pytest.approx(0.2)]


def test_a_fit_warns_whoever_called_it_once(monkeypatch):
    monkeypatch.setattr(durations, "_LONG", 0.0)
    monkeypatch.setattr(durations, "_SECONDS", 0.0)
    images = load_digits().images[:200] / 16
    with pytest.warns(DurationWarning, match=r"will take about .* on cpu") as told:
        ExCBEstimator(K=5, epochs=2, image_size=12, random_state=0).fit(images)
    (warning,) = (one for one in told if one.category is DurationWarning)
    assert warning.filename == __file__


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(
            {"backbone": "mobilenetv3_small_050", "pretrained": True, "image_size": 32},
            id="pretrained",
            marks=pytest.mark.slow,
        ),
        pytest.param({"image_size": 12, "local_size": 12}, id="one size"),
        pytest.param({"image_size": 12, "n_local": 0}, id="no local views"),
        pytest.param(
            {"backbone": "vit_tiny_patch16_224", "image_size": 32},
            id="transformer",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_advice_ends_no_fit(monkeypatch, tmp_path, chosen):
    """Of whatever kind, and without fetching or reading weights again."""
    monkeypatch.setattr(durations, "_LONG", 0.0)
    monkeypatch.setattr(durations, "_SECONDS", 0.0)
    if "pretrained" in chosen:
        file = tmp_path / "weights.safetensors"
        save_file(timm.create_model(chosen["backbone"]).state_dict(), file)
        chosen = chosen | {"pretrained": file}
    images = load_digits().images[:200] / 16
    with pytest.warns(DurationWarning, match=r"will take about .* on cpu") as told:
        ExCBEstimator(K=5, epochs=2, batch_size=40, random_state=0, **chosen).fit(images)
    (warning,) = (one for one in told if one.category is DurationWarning)
    assert ("freeze_backbone=True" in str(warning.message)) == ("pretrained" in chosen)


def test_advice_that_fails_is_none(monkeypatch):
    def failing(*_):
        raise RuntimeError

    monkeypatch.setattr(durations, "work", failing)
    assert "fewer epochs" in advice_if_long(36_000, parameters(), PHOTOS, CPU)


def test_work_counts_global_views_whatever_the_size_of_local_ones():
    same = parameters(backbone="cnn", image_size=24, local_size=24, epochs=2)
    few = parameters(backbone="cnn", image_size=24, n_local=0, epochs=2)
    a_view = work(same | {"n_local": 1}, PHOTOS) - work(few, PHOTOS)
    assert a_view > 0
    n_views = 2 * 2 / 3 + 2  # global ones, of which the student's are three times as much work
    assert work(few, PHOTOS) == pytest.approx(a_view * (2 + 2 / 3))
    assert work(same | {"n_local": 2}, PHOTOS) == pytest.approx(a_view * (n_views - 2 / 3 + 2))


def test_advice_names_recipes_that_take_less():
    large = parameters(backbone="resnet50", image_size=160)
    said = advice_if_long(36_000, large, replace(PHOTOS, n_samples=12_000), CPU)
    assert said.index('"small"') < said.index('"tiny"')
    for chosen in (large, parameters()):
        few = advice_if_long(36_000, chosen, PHOTOS, CPU)
        assert '"small"' not in few  # which would learn little
        assert '"tiny"' in few
    tiny = parameters(**RECIPES["tiny"])
    assert "fewer epochs" in advice_if_long(36_000, tiny, PHOTOS, CPU)
    rows = Facts(3_000, "rows", (0, 0), 64)
    assert "fewer epochs" in advice_if_long(36_000, parameters(), rows, CPU)


def test_nothing_is_said_of_short_fits_and_of_accelerators():
    assert advice_if_long(600, parameters(), PHOTOS, CPU) == ""
    assert advice_if_long(36_000, parameters(), PHOTOS, torch.device("cuda")) == ""


def test_work_is_that_of_the_layers():
    """A 1 x 1 convolution is d d' products a pixel; the heads are counted by hand too."""

    class Pixelwise(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 1, bias=False)

        def forward(self, x):
            return self.conv(x).mean(dim=(2, 3))

    facts = Facts(100, "images", (32, 32), 3)
    chosen = parameters(K=5, backbone=Pixelwise(), epochs=3, head_width=16, n_local=2)
    found = work(chosen | {"image_size": 32, "local_size": 16}, facts)
    head = 2 * (8 * 16 + 16 * 16 + 16 * 256)
    of_global, of_local = 2 * 3 * 8 * 32**2 + head, 2 * 3 * 8 * 16**2 + head
    an_image = 2 * of_global + 3 * (2 * of_global + 2 * of_local)
    assert found == pytest.approx(an_image * 300)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.314, "0.31 s"),
        (12.4, "12 s"),
        (99.9, "100 s"),
        (750, "12 min"),
        (12_000, "3 h 20 min"),
        (370_000, "4 d 6 h"),
    ],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
