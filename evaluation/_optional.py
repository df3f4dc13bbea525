"""Optional dependencies, imported at the moment they are needed."""

from importlib import import_module
from typing import Any


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Import an optional module, or say which pip extra brings it.

    Parameters
    ----------
    module : str
        Name of the module, for example ``"umap"``.
    extra : str
        The extra of the distribution that installs it.
    purpose : str
        What the module is needed for; the subject of the error message.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    ImportError
        If the module cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs the module {module!r}, which could not be imported. "
            f'Install it with: pip install "sklearn-excb[{extra}]"'
        ) from error


def importable(module: str) -> bool:
    """Tell whether a module really imports: one that is installed but broken does not count."""
    try:
        import_module(module)
    except ImportError:
        return False
    return True
