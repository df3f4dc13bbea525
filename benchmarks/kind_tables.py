"""Markdown tables of the comparison of clusterings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.stored import spread

Result = dict[str, Any]


def above_k_means(found: dict[str, float], curves: list[list[tuple[float, float]]]) -> float:
    """Return purity less that of k-means with as many effective clusters; NaN off the curves."""
    expected = []
    for curve in curves:
        effective, purity = np.array(sorted(curve)).T
        if not effective[0] <= found["effective"] <= effective[-1] + 1e-9:
            return float("nan")
        expected.append(np.interp(np.log(found["effective"]), np.log(effective), purity))
    return float(found["purity"] - np.mean(expected)) if expected else float("nan")


# Title, part of the rows, score, format; and whether only K = classes shows it.
_COLUMNS = (
    ("clusters", "train", "clusters", "{:.0f}", False),
    ("effective", "train", "effective", "{:.1f}", False),
    ("smallest", "train", "smallest", "{:.2f}", False),
    ("largest", "train", "largest", "{:.2f}", False),
    ("noise", "train", "noise", "{:.0%}", False),
    ("ACC", "train", "acc", "{:.3f}", True),
    ("AMI", "train", "ami", "{:.3f}", False),
    ("ARI", "train", "ari", "{:.3f}", False),
    ("purity", "train", "purity", "{:.3f}", False),
    ("above k-means", "train", "above", "{:+.3f}", False),
    ("NMI", "train", "nmi", "{:.3f}", False),
    ("held out: AMI", "held_out", "ami", "{:.3f}", False),
    ("held out: ACC", "held_out", "acc", "{:.3f}", True),
    ("held out: above k-means", "held_out", "above", "{:+.3f}", False),
)


class Tables:
    """Tables of cells with their results.

    Parameters
    ----------
    choices : sequence of str
        Choices of K, in order; the first is the number of classes.
    results : iterable of pairs
        Each cell with its result, None if it is missing.
    """

    def __init__(
        self, choices: Sequence[str], results: Iterable[tuple[Any, Result | None]]
    ) -> None:
        self._choices = choices
        self._rows: dict[tuple[str, str, str], list[Result | None]] = {}
        self._curves: dict[str, list[Any]] = {}
        for cell, result in results:
            if result is not None and "curve" in result:
                self._curves.setdefault(cell.data, []).append(result["curve"])
            else:
                self._rows.setdefault((cell.choice, cell.data, cell.method), []).append(result)

    def text(self) -> str:
        """Return all tables: a summary over the sets for each choice of K, and each set's own."""
        parts = []
        for choice in self._choices:
            for title, name, form in (
                ("AMI of training rows", "ami", "{:.3f}"),
                ("purity above k-means, training rows", "above", "{:+.3f}"),
            ):
                parts.append(f"## K {choice}: {title}\n\n{self._summary(choice, name, form)}")
        for choice in self._choices:
            for data in self._of(choice, 1):
                parts.append(f"## K {choice}: {data}\n\n{self._details(choice, data)}")
        return "\n\n".join(parts)

    def _of(self, choice: str, place: int) -> list[str]:
        """Return the sets (place 1) or the methods (place 2) with results, in order."""
        having = [key for key, row in self._rows.items() if key[0] == choice and any(row)]
        return list(dict.fromkeys(key[place] for key in having))

    def _summary(self, choice: str, name: str, form: str) -> str:
        sets = self._of(choice, 1)
        lines = ["| | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
        for method in self._of(choice, 2):
            figures = [self._figure((choice, data, method), "train", name, form) for data in sets]
            lines.append(f"| {method} | " + " | ".join(figures) + " |")
        return "\n".join(lines)

    def _details(self, choice: str, data: str) -> str:
        columns = [column for column in _COLUMNS if choice == self._choices[0] or not column[4]]
        titles = ["", "seeds", *(column[0] for column in columns), "seconds"]
        lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
        for method in self._of(choice, 2):
            row = self._rows.get((choice, data, method), [])
            if not any(row):
                continue
            figures = [self._figure((choice, data, method), *column[1:4]) for column in columns]
            figures.append(self._figure((choice, data, method), None, "seconds", "{:.1f}"))
            seeds = f"{sum(result is not None for result in row)} of {len(row)}"
            lines.append(f"| {method} | {seeds} | " + " | ".join(figures) + " |")
        return "\n".join(lines)

    def _figure(self, key: tuple[str, str, str], part: str | None, name: str, form: str) -> str:
        there = [result for result in self._rows.get(key, []) if result is not None]
        unfinished = [result for result in there if "unfinished_after" in result]
        if not there or unfinished:
            return f"over {unfinished[0]['unfinished_after']:.0f} s" if unfinished else "missing"
        parts = [result if part is None else result[part] for result in there]
        if part is None or None in parts:
            return "-" if None in parts else spread([of[name] for of in parts], form)
        if name == "above":
            curves = [curve[part] for curve in self._curves.get(key[1], [])]
            return spread([above_k_means(of, curves) for of in parts], form)
        return spread([of[name] for of in parts], form)
