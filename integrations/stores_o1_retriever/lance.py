"""A table of LanceDB in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from o1_retriever.concurrency.processes import Sent
from o1_retriever.documents.document import Document
from o1_retriever.errors import StoreError, require
from o1_retriever.index.filters import Condition, Every, Part
from o1_retriever.index.foreign import Near
from o1_retriever.index.ledger import EmbeddedDocument, metadata_json
from o1_retriever.thought import Vector

lancedb = require("lancedb", extra="stores", purpose="LanceDB")

_AT_ONCE = 1000
_NOTE = b"o1_retriever"
_COLUMNS = ("id", "text", "metadata")
_FEWEST = 100_000  # documents from which on an index is made: fewer are compared quickly


class LanceStore(Sent):
    """A table of a database in a folder. Metadata are one column of JSON, which is what filters look into."""

    def __init__(self, folder: str, collection: str) -> None:
        path = Path(folder).expanduser()
        self.name = f"The table {collection!r} of LanceDB in {path}"
        self._called = collection
        try:
            self._database = lancedb.connect(path)
            there = collection in self._database.list_tables().tables
            self._found = self._database.open_table(collection) if there else None
        except (OSError, ValueError, RuntimeError) as error:
            raise StoreError(f"LanceDB cannot be opened in {path} ({error!s:.120}).") from error

    @property
    def _table(self) -> Any:
        if self._found is None:
            raise StoreError(f"{self.name} does not exist.", hint="Type: o1-retriever load")
        return self._found

    def description(self) -> dict[str, Any] | None:
        """What was noted when the table was made."""
        if self._found is None:
            return None
        noted = (self._table.schema.metadata or {}).get(_NOTE)
        return None if noted is None else json.loads(noted)

    def begin(self, description: dict[str, Any], dimension: int) -> None:
        """Make the table."""
        import pyarrow

        columns = [pyarrow.field(name, pyarrow.string(), nullable=False) for name in _COLUMNS]
        vector = pyarrow.field("vector", pyarrow.list_(pyarrow.float32(), dimension))
        schema = pyarrow.schema([*columns, vector], metadata={_NOTE: json.dumps(description)})
        if self._found is None:
            self._found = self._database.create_table(self._called, schema=schema)

    def put(self, documents: Sequence[EmbeddedDocument]) -> None:
        """Keep documents."""
        rows = [
            {
                "id": each.document.id,
                "text": each.document.text,
                "metadata": metadata_json(each.document.metadata),
                "vector": each.vector,
            }
            for each in documents
        ]
        merged = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merged.execute(rows)

    def finish(self) -> None:
        """Make an index where there are many documents, and join the small files of their coming."""
        self._table.optimize()
        if self.count() >= _FEWEST:
            self._table.create_index(metric="cosine", vector_column_name="vector")

    def count(self) -> int:
        """Number of documents."""
        return int(self._table.count_rows())

    def can(self, condition: Condition) -> bool:
        """What equal values look like in JSON can be looked for, and whether a field is there."""
        return condition.test in ("in", "exists")

    def nearest(self, vectors: Vector, count: int, part: Part | None) -> list[list[Near]]:
        """Those that its index finds, or all compared where there is none."""
        found = []
        for vector in vectors:
            query = self._table.search(vector).distance_type("cosine").limit(count)
            query = query.select(["id", "metadata", "_distance"])
            if part is not None:
                query = query.where(_where(part), prefilter=True)
            rows = query.to_list()
            found.append([Near(row["id"], 1 - row["_distance"], json.loads(row["metadata"])) for row in rows])
        return found

    def documents(self, ids: Sequence[str]) -> dict[str, EmbeddedDocument]:
        """The documents of those ids."""
        found: dict[str, EmbeddedDocument] = {}
        for start in range(0, len(ids), _AT_ONCE):
            listed = ",".join(_text(id) for id in ids[start : start + _AT_ONCE])
            rows = self._table.search().where(f"id IN ({listed})").limit(_AT_ONCE).to_list()
            found |= {row["id"]: _embedded(row) for row in rows}
        return found

    def pages(self, part: Part | None, *, vectors: bool) -> Iterator[list[EmbeddedDocument]]:
        """All that pass."""
        query = self._table.search()
        if part is not None:
            query = query.where(_where(part))
        columns = [*_COLUMNS, *(["vector"] if vectors else [])]
        for batch in query.select(columns).to_batches(_AT_ONCE):
            if batch.num_rows:
                yield [_embedded(row) for row in batch.to_pylist()]

    def close(self) -> None:
        """Nothing is held open."""
        self._found = None


def _embedded(row: Mapping[str, Any]) -> EmbeddedDocument:
    document = Document(id=row["id"], text=row["text"], metadata=json.loads(row["metadata"]))
    return EmbeddedDocument(document=document, vector=np.asarray(row.get("vector", ()), np.float32))


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _where(part: Part) -> str:
    """A weaker filter in SQL over the text of the metadata."""
    if isinstance(part, Condition):
        key = f"{json.dumps(part.field, ensure_ascii=False)}: "
        if part.test == "exists":
            return f"contains(metadata, {_text(key)})"
        shown = [f"{key}{form}" for operand in part.operands for form in _forms(operand)]
        return (
            f"({' OR '.join(f'contains(metadata, {_text(each)})' for each in shown)})" if shown else "false"
        )
    inner = [_where(each) for each in part.parts]  # type: ignore[union-attr]
    if not inner:
        return "false"
    return f"({(' AND ' if isinstance(part, Every) else ' OR ').join(inner)})"


def _forms(operand: Any) -> list[str]:
    """How JSON writes the values that equal an operand."""
    if isinstance(operand, str):
        return [json.dumps(operand, ensure_ascii=False)]
    forms = ["-0.0"] if operand == 0 else []
    if operand == operand // 1 and abs(operand) != float("inf"):
        forms.append(str(int(operand)))
    if float(operand) == operand:
        forms.append(json.dumps(float(operand)))
    return forms + ([json.dumps(bool(operand))] if operand in (0, 1) else [])
