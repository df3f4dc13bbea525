"""Results as JSON files: their names, how they are written, and how tables show them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any


def hashed(configuration: dict[str, Any]) -> str:
    """Return a hash of a configuration."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def store(path: Path, result: dict[str, Any]) -> None:
    """Write a result atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(result), sort_keys=True, allow_nan=False)
    beside = path.with_suffix(f".{os.getpid()}.partial")
    beside.write_text(text + "\n")
    beside.replace(path)


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by None, which is null in JSON."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def spread(values: Sequence[float], form: str) -> str:
    """Format mean and standard deviation over the seeds; NaN (not available) as a dash."""
    if not values or any(math.isnan(value) for value in values):
        return "-"
    text = form.format(mean(values))
    return (
        f"{text} ± {form.replace('+', '').format(stdev(values))}" if len(set(values)) > 1 else text
    )
