"""The package ``evaluation`` by a name that no other module takes.

``import sklearn_excb.evaluation`` gives what ``import evaluation`` gives, even where another module
has that name. ``sklearn_excb`` itself imports it from here.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation import *  # noqa: F403
    from evaluation import _optional as _optional
    from evaluation import maps as maps
    from evaluation import output_files as output_files

_FILE = Path(__file__).resolve().parent.parent / "evaluation" / "__init__.py"


def _is_ours() -> bool:
    """Whether ``import evaluation`` gives the package beside this one; nothing is imported."""
    try:
        spec = find_spec("evaluation")
    except ValueError:  # a module that was made by hand
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == _FILE


# this module becomes a package: its modules are found where those of ``evaluation`` are
__path__ = [str(_FILE.parent)]
if _is_ours():
    import evaluation as _package

    for _name in [name for name in sys.modules if name.startswith("evaluation.")]:
        sys.modules[f"sklearn_excb.{_name}"] = sys.modules[_name]  # loaded once, under two names
    _own = ("__name__", "__package__", "__path__", "__file__", "__spec__", "__loader__")
    globals().update({name: of for name, of in vars(_package).items() if name not in _own})
else:
    __package__ = __name__
    exec(compile(_FILE.read_bytes(), str(_FILE), "exec"))
