"""Shared style of all displays: colours, axes, and text that stays legible on points."""

from typing import TYPE_CHECKING, Any

from ._optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#1f2933"
MUTED = "#69757f"
GRID = "#e6e9ec"

# Colours for thin lines on white; they differ in hue and in lightness.
LINES = ("#2458c5", "#e0661c", "#0b8f77", "#b5307e", "#7a5af0", "#8a6d1d")

# Up to twenty classes: ten hues, then the same hues lighter.
CLASSES = (
    *("#2f6bd8", "#ee7a2b", "#1f9e77", "#d6453d", "#8a5bd6"),
    *("#9c6b3f", "#e267ac", "#5c6773", "#b3a41b", "#22aebf"),
    *("#8db4f2", "#f8be8c", "#8ad4b8", "#f2a09b", "#c5aef0"),
    *("#cfae8e", "#f4bcdb", "#b1b9c1", "#ded47a", "#92dce5"),
)


def pyplot() -> Any:
    """Return ``matplotlib.pyplot``, or raise an error that names the extra with it."""
    return require("matplotlib.pyplot", extra="eval", purpose="Plotting")


def axes(ax: "Axes | None", *, figsize: tuple[float, float]) -> "Axes":
    """Return ``ax``, or the axes of a new figure of ``figsize`` inches."""
    if ax is not None:
        return ax
    return pyplot().subplots(figsize=figsize, layout="constrained")[1]


def quiet(ax: "Axes") -> None:
    """Remove the frame of the axes except the sides with a scale, and draw these lightly."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
        ax.spines[side].set_linewidth(0.8)
    ax.tick_params(which="both", color=MUTED, labelcolor=INK, labelsize=9, width=0.8)
    ax.set_axisbelow(True)


def halo(width: float = 3.0, color: str = "white") -> list[Any]:
    """Return path effects that keep text legible over points or lines."""
    effects = require("matplotlib.patheffects", extra="eval", purpose="Plotting")
    return [effects.withStroke(linewidth=width, foreground=color)]


def percent(share: float) -> str:
    """Format a share as a percentage, without rounding to 0 % or 100 %."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"
