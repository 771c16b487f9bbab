"""Everything this library raises on purpose.

```
O1RetrieverError
├── InputError (ValueError)          a text, a list of texts or a file's content cannot be used
│   ├── DocumentError                a document or a folder of documents cannot be read
│   ├── FilterError                  a filter by metadata cannot be used
│   └── CollectionError              an evaluation collection, or a run, cannot be used
├── SettingsError (ValueError)       a setting is out of its range
├── MissingExtraError (ImportError)  an optional dependency is not installed
│   └── WrongVersionError            it is installed in a version that does not fit
├── ModelError
│   ├── ModelNotFoundError           no such folder or hub id, or a folder without weights
│   └── CheckpointError              weights, tokenizer or config that do not make a thinking embedder
├── ThinkerError                     a source of thoughts that cannot be used at all
├── EncoderError                     an encoder whose vectors cannot be used
├── CacheError                       the thought cache cannot be opened or written
├── NotSendableError (PicklingError) something that cannot be sent to another process
└── StoreError
    ├── IndexNotFoundError           nothing has been indexed where an index was expected
    └── FingerprintError             the index was built by another document space
```

A message says what was found and what was expected; `hint` says what to type. An optional package is imported
by `require` when it is first used, so that the error names the extra that installs it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pickle
from functools import lru_cache
from types import ModuleType


class O1RetrieverError(Exception):
    """Base of the tree: catch this to catch every error that the library raises on purpose."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class InputError(O1RetrieverError, ValueError):
    """A text cannot be used. `position` is its place in the batch (from 0), or None for the whole input."""

    def __init__(self, message: str, *, hint: str | None = None, position: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.position = position


class DocumentError(InputError):
    """A document or a folder cannot be read. `path` is which, `reason` is why, without the path."""

    def __init__(self, path: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {reason}", hint=hint)
        self.path = path
        self.reason = reason


class FilterError(InputError):
    """A filter by metadata cannot be used; the message names the place in it."""


class CollectionError(InputError):
    """A collection of documents, queries and judgments, or a run over it, cannot be used."""


class SettingsError(O1RetrieverError, ValueError):
    """A setting has the wrong type or is out of its range."""


class MissingExtraError(O1RetrieverError, ImportError):
    """An optional dependency is missing. `extra` is the extra of this distribution that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed.",
            hint=f"Type: pip install 'o1-retriever[{extra}]'",
        )
        self.extra = extra


class WrongVersionError(MissingExtraError):
    """An optional dependency is installed in a version that `extra` does not allow."""

    def __init__(self, package: str, extra: str, purpose: str, *, found: str, expected: str) -> None:
        super().__init__(package, extra, purpose)
        self.message = f"{purpose} needs {package} {expected}; found version {found}."


class ModelError(O1RetrieverError):
    """A model cannot be found or cannot be used."""


class ModelNotFoundError(ModelError):
    """No such folder or hub id, or a folder without weights."""


class CheckpointError(ModelError):
    """Weights, tokenizer or config that do not make a thinking embedder."""


class ThinkerError(O1RetrieverError):
    """A source of thoughts cannot be used at all (a single failed thought is recorded, not raised)."""


class EncoderError(O1RetrieverError):
    """An encoder returned something that is not one finite vector per text."""


class CacheError(O1RetrieverError):
    """The thought cache cannot be opened or written."""


class NotSendableError(O1RetrieverError, pickle.PicklingError):
    """Something was pickled that another process cannot make: a lambda, a live client, a loaded model."""


class StoreError(O1RetrieverError):
    """The document index cannot be read or written."""


class IndexNotFoundError(StoreError):
    """Nothing has been indexed where an index was expected."""


class FingerprintError(StoreError):
    """The index was built by another document space: its vectors cannot be compared with these."""


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
