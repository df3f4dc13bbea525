"""Line charts of the report, as SVG with the colours of the page and a text for screen readers."""

from collections.abc import Mapping, Sequence
from html import escape
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_WIDE, _NARROW, _HEIGHT = 560, 330, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 28
_MOST_STEPS = 600  # points of a line; more points make no visible difference
_LARGEST = 1e300  # numbers beyond are drawn there
_FEWEST_FOR_A_LINE = 3  # two measurements, before and after, do not tell what happened between them


def meanings_list(history: Sequence[Mapping[str, Any]], meanings: Mapping[str, str]) -> str:
    """Return a list of the terms on the training charts with their meanings; "" if it is empty."""
    terms = "".join(
        f"<div><dt>{escape(_words(name))}</dt><dd>{escape(meanings[name])}</dd></div>"
        for name in _measured(history)
        if name in meanings
    )
    return f"<dl class=meanings>{terms}</dl>" if terms else ""


def occupancy_chart(sizes: Mapping[str, NDArray[np.float64]]) -> str:
    """Draw the relative cluster sizes in descending order, on a logarithmic scale.

    A balanced clustering is a line at 1.

    Parameters
    ----------
    sizes : mapping of str to ndarray of shape (K,)
        Relative cluster sizes of each model, by the name of the model.
    """
    largest = max(float(each.max()) for each in sizes.values())
    smallest = min(float(each[each > 0].min()) for each in sizes.values())
    low = np.log10(min(smallest / 1.5, 0.2))
    high = np.log10(max(largest * 1.5, 5.0))
    lines = {}
    for name, each in sizes.items():
        used = np.sort(each[each > 0])[::-1]
        share = np.linspace(0, len(used) / len(each), len(used))
        lines[name] = share, np.log10(used)
    ticks = [(float(t), f"{10.0**t:g}") for t in range(int(np.ceil(low)), int(high) + 1)]
    across = [(0.0, "0"), (1.0, "all")]
    told = "; ".join(
        f"{name}: {np.mean(each == 0):.1%} of clusters empty, largest {each.max():.1f}"
        for name, each in sizes.items()
    )
    return _chart(
        lines,
        (0.0, 1.0),
        (low, high),
        (across, ticks),
        label=f"Relative size of the clusters, largest first. {told}.",
        caption="clusters, largest first",
        width=_WIDE,
        rule=0.0,
    )


def history_charts(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """Draw a chart for each quantity of a training: (title, svg, names of the lines).

    Quantities that share a name and differ in a suffix ("empty_fraction",
    "empty_fraction_balanced") share a chart. So do all quantities that end in "loss", and all that
    end in "entropy". A quantity with fewer than two measurements is left out.

    Parameters
    ----------
    history : sequence of mappings
        One entry per epoch: numbers by name, NaN or any other type where nothing was measured.
        "epoch" is the horizontal axis; without it, the position of the entry.
    """
    epochs = np.array([_number(entry.get("epoch", i)) for i, entry in enumerate(history)])
    if not np.isfinite(epochs).all():
        epochs = np.arange(len(history), dtype=np.float64)
    series: dict[str, dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    names = _names(history)
    for name, values in _measured(history).items():
        known = np.isfinite(values)
        series.setdefault(_family(name, names), {})[name] = epochs[known], values[known]
    return [_history_chart(title, lines) for title, lines in series.items()]


def _names(history: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for entry in history for name in entry if name != "epoch"))


def _measured(history: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """Return the values of each quantity with two or more measurements, NaN where it has none."""
    values = {
        name: np.array([_number(entry.get(name)) for entry in history]) for name in _names(history)
    }
    return {name: each for name, each in values.items() if np.isfinite(each).sum() >= 2}


def _history_chart(
    title: str, lines: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> tuple[str, str, list[str]]:
    xs = np.concatenate([x for x, _ in lines.values()])
    ys = np.concatenate([y for _, y in lines.values()])
    low, high = float(ys.min()), float(ys.max())
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    bottom, top = low - margin, high + margin
    told = "; ".join(
        f"{_words(name)} from {y[0]:.4g} to {y[-1]:.4g}" for name, (_, y) in lines.items()
    )
    across = [(float(x), f"{x:g}") for x in dict.fromkeys((float(xs.min()), float(xs.max())))]
    svg = _chart(
        lines,
        (float(xs.min()), float(xs.max())),
        (bottom, top),
        (across, [(y, f"{y:.3g}") for y in dict.fromkeys((low, high))]),
        label=f"{title}: {told}.",
        caption="epoch",
    )
    return title, svg, [_words(name) for name in lines]


def _family(name: str, names: Sequence[str]) -> str:
    """Return the title of the chart that a quantity belongs to."""
    for ending in ("loss", "entropy"):
        if name.endswith(ending):
            return ending.capitalize()
    stems = [other for other in names if name != other and name.startswith(other + "_")]
    return _words(min(stems, key=len) if stems else name).capitalize()


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: Any) -> float:
    """Return a number so small that sums of a few do not overflow; NaN for anything else."""
    try:
        number = float(value) if isinstance(value, Real) else np.nan
    except OverflowError:  # an integer beyond float64, drawn no more than infinity is
        number = np.nan
    return float(np.clip(number, -_LARGEST, _LARGEST)) if np.isfinite(number) else number


def _chart(
    lines: Mapping[str, tuple[ArrayLike, ArrayLike]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    ticks: tuple[Sequence[tuple[float, str]], Sequence[tuple[float, str]]],
    *,
    label: str,
    caption: str,
    width: int = _NARROW,
    rule: float | None = None,
) -> str:
    """Draw lines over a frame with the given ticks; CSS classes of the page set the colours."""
    right, bottom = width - _RIGHT, _HEIGHT - _BOTTOM

    def x_of(value: Any) -> Any:
        span = (x_range[1] - x_range[0]) or 1.0
        return _LEFT + (np.asarray(value) - x_range[0]) / span * (right - _LEFT)

    def y_of(value: Any) -> Any:
        return bottom - (np.asarray(value) - y_range[0]) / (y_range[1] - y_range[0]) * (
            bottom - _TOP
        )

    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {_HEIGHT}" role="img" '
        f'aria-label="{escape(label, quote=True)}">'
    ]
    for value, text in ticks[1]:
        y = float(y_of(value))
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="end">{escape(text)}</text>')
    for place, (value, text) in enumerate(ticks[0]):
        anchor = "end" if place else "start"
        x = float(x_of(value))
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" class="{anchor}">{escape(text)}</text>')
    parts.append(
        f'<text x="{(_LEFT + right) / 2:.0f}" y="{bottom + 16}" class="middle">{caption}</text>'
    )
    if rule is not None:
        parts.append(f'<path class="rule" d="M{_LEFT} {float(y_of(rule)):.1f}H{right}"/>')
    for place, (x, y) in enumerate(lines.values()):
        x, y = np.asarray(x), np.asarray(y)
        if len(x) > _MOST_STEPS:
            shown = np.linspace(0, len(x) - 1, _MOST_STEPS).round().astype(int)
            x, y = x[shown], y[shown]
        corners = list(zip(x_of(x), y_of(y), strict=True))
        if len(corners) < _FEWEST_FOR_A_LINE:
            marks = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4.5"/>' for a, b in corners)
            parts.append(f'<g class="marks line-{place % 6}">{marks}</g>')
        else:
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
            parts.append(f'<polyline class="line line-{place % 6}" points="{points}"/>')
    parts.append("</svg>")
    return "".join(parts)
