"""Optional dependencies: imported when first used, with an error that names the extra to install."""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import lru_cache
from types import ModuleType

from o1_retriever.errors import MissingExtraError, WrongVersionError

_DISTRIBUTION = "o1-retriever"


def require(module: str, *, extra: str, purpose: str, distribution: str | None = None) -> ModuleType:
    """Import and return `module`, or raise `MissingExtraError` naming the extra that installs it.

    `distribution` is the package's name where it is not the module's. Raises `WrongVersionError`, before the
    import, where the extra does not allow the installed version.
    """
    mismatch = _mismatch(distribution or module, extra)
    if mismatch is not None:
        package, installed, expected = mismatch
        raise WrongVersionError(package, extra, purpose, found=installed, expected=expected)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(module.split(".")[0], extra, purpose) from error


@lru_cache(maxsize=64)
def _mismatch(module: str, extra: str) -> tuple[str, str, str] | None:
    """The package, its installed version and the versions that the extra allows, where they do not agree.

    None as well where nothing is declared, as where this library is used from a folder.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    name = canonicalize_name(module.replace(".", "-"))
    try:
        declared = importlib.metadata.requires(_DISTRIBUTION) or []
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    for each in map(Requirement, declared):
        in_extra = each.marker is not None and each.marker.evaluate({"extra": extra})
        fits = each.specifier.contains(installed, prereleases=True)
        if in_extra and canonicalize_name(each.name) == name and not fits:
            return each.name, installed, str(each.specifier)
    return None
