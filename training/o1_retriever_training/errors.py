"""What the stages raise beside the errors of `o1_retriever`."""

from __future__ import annotations

from o1_retriever.errors import InputError, O1RetrieverError


class DataError(InputError):
    """A file of rows cannot be read, or holds rows that a strict reading refuses."""


class LedgerError(O1RetrieverError):
    """An output cannot be begun, gone on with or written; what was written stays."""


class OtherRecipeError(LedgerError):
    """An output was begun with another recipe than the one that is to go on with it."""


class TrainingError(O1RetrieverError):
    """A training run cannot be begun, gone on with or finished; its last whole checkpoint stays."""
