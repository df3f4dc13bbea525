"""JSON in files: what cannot be read is a damaged file, whatever is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sklearn_excb.exceptions import DamagedFileError
from sklearn_excb.storage.regular_files import open_regular


def read_object(file: Path) -> dict[str, Any]:
    """Read a file that contains one JSON object.

    Raises
    ------
    DamagedFileError
        If the file contains anything else.
    OSError
        If the file cannot be read.
    """
    with open_regular(file) as opened:
        text = opened.read()
    found = parsed(text, file)
    if not isinstance(found, dict):
        raise DamagedFileError(f"{file} is damaged: it does not contain a JSON object.")
    return found


def parsed(text: str | bytes, file: Path) -> Any:
    """Return the value that the JSON text of a file stands for.

    Raises
    ------
    DamagedFileError
        If the text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{file} is damaged: its JSON cannot be read ({error}).") from error
