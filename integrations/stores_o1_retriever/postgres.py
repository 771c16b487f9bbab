"""A table of PostgreSQL with the extension pgvector."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import psycopg
from psycopg import sql
from psycopg.types.json import set_json_loads

from o1_retriever.concurrency.processes import Sent
from o1_retriever.documents.document import Document
from o1_retriever.errors import StoreError
from o1_retriever.index.filters import Condition, Every, Part
from o1_retriever.index.foreign import Near
from o1_retriever.index.ledger import EmbeddedDocument, metadata_json
from o1_retriever.thought import Vector

_AT_ONCE = 500
_LARGEST = 2**63  # a greater number was a float
_INDEXED = 2000  # numbers of a vector that pgvector's graph takes
# The columns of LangChain's PGVectorStore.
_COLUMNS = "langchain_id, content, langchain_metadata, embedding"
_KIND = "jsonb_typeof(langchain_metadata -> %s)"


class PostgresStore(Sent):
    """A table of the database at an address such as `postgresql://user@host/database`."""

    def __init__(self, address: str, collection: str) -> None:
        self._table = sql.Identifier(collection)
        self._address, self._called = address, collection
        self._opened: psycopg.Connection[Any] | None = None
        self._lock = threading.RLock()  # what is one transaction is not another thread's
        place = self._connection.info
        self.name = f"The table {collection!r} of PostgreSQL at {place.host}, {place.dbname}"

    @property
    def _connection(self) -> psycopg.Connection[Any]:
        """The connection, made again where the server has ended it."""
        with self._lock:
            if self._opened is None or self._opened.closed:
                try:
                    self._opened = psycopg.connect(self._address, autocommit=True)
                except psycopg.Error as error:
                    raise StoreError(
                        f"PostgreSQL cannot be reached ({error!s:.200}).", hint="Check the address."
                    ) from error
                set_json_loads(_loaded, self._opened)
            return self._opened

    def _run(self, text: str, values: Sequence[Any] = (), **names: Any) -> Any:
        statement = sql.SQL(text).format(table=self._table, **names)
        return self._connection.execute(statement, list(values))

    def description(self) -> dict[str, Any] | None:
        """What was noted when the table was made."""
        found = self._run(
            "SELECT obj_description(to_regclass(%s))", [self._table.as_string(self._connection)]
        ).fetchone()
        try:
            noted: dict[str, Any] = json.loads(found[0] or "null")["o1_retriever"]
        except (ValueError, TypeError, KeyError):
            return None
        return noted

    def begin(self, description: dict[str, Any], dimension: int) -> None:
        """Make the table."""
        try:
            self._run("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.Error as error:
            raise StoreError(
                f"{self.name} cannot be made: the database has no pgvector ({error!s:.120}).",
                hint="Install the extension, and type as its owner: CREATE EXTENSION vector",
            ) from error
        self._run(
            "CREATE TABLE IF NOT EXISTS {table} (langchain_id TEXT PRIMARY KEY, content TEXT NOT NULL, "
            "langchain_metadata JSONB NOT NULL, embedding vector({dimension}) NOT NULL)",
            dimension=sql.Literal(dimension),
        )
        self._run(
            "COMMENT ON TABLE {table} IS {note}", note=sql.Literal(json.dumps({"o1_retriever": description}))
        )

    def put(self, documents: Sequence[EmbeddedDocument]) -> None:
        """Keep documents."""
        with self._lock, self._connection.transaction(), self._connection.cursor() as cursor:
            self._run("CREATE TEMP TABLE o1_new (LIKE {table}) ON COMMIT DROP")
            with cursor.copy(f"COPY o1_new ({_COLUMNS}) FROM STDIN") as copy:
                for each in documents:
                    document = each.document
                    copy.write_row(
                        (document.id, document.text, metadata_json(document.metadata), _literal(each.vector))
                    )
            self._run(
                f"INSERT INTO {{table}} ({_COLUMNS}) SELECT {_COLUMNS} FROM o1_new "
                "ON CONFLICT (langchain_id) DO UPDATE SET content = excluded.content, "
                "langchain_metadata = excluded.langchain_metadata, embedding = excluded.embedding"
            )

    def finish(self) -> None:
        """Make the graph, which is quicker over what is there than while it comes."""
        graph = sql.Identifier(f"{self._called[:50]}_hnsw")
        if self._dimension() <= _INDEXED:
            self._run(
                "CREATE INDEX IF NOT EXISTS {graph} ON {table} USING hnsw (embedding vector_cosine_ops) "
                "WITH (m = 32, ef_construction = 200)",
                graph=graph,
            )
        self._run("ANALYZE {table}")

    def _dimension(self) -> int:
        query = (
            "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'embedding'"
        )
        return int(self._run(query, [self._table.as_string(self._connection)]).fetchone()[0])

    def count(self) -> int:
        """Number of documents."""
        return int(self._run("SELECT count(*) FROM {table}").fetchone()[0])

    def can(self, condition: Condition) -> bool:
        """All but the order of strings, which is that of the database, and what is inside of them.

        It has no infinite number, and no string with a NUL.
        """
        if condition.test not in ("in", "exists", "gt", "gte", "lt", "lte") or "\0" in condition.field:
            return False
        return all(
            condition.test == "in" and "\0" not in each if isinstance(each, str) else abs(each) != math.inf
            for each in condition.operands
        )

    def nearest(self, vectors: Vector, count: int, part: Part | None) -> list[list[Near]]:
        """Those that its graph finds, which goes on where a filter leaves out too many."""
        where, values = _where(part)
        found = []
        with self._lock, self._connection.transaction():
            self._connection.execute(f"SET LOCAL hnsw.ef_search = {min(1000, max(400, count))}")
            self._connection.execute("SET LOCAL hnsw.iterative_scan = relaxed_order")
            for vector in vectors:
                text = _literal(vector)
                rows = self._run(
                    "SELECT langchain_id, 1 - (embedding <=> %s::vector), langchain_metadata FROM {table} "
                    f"WHERE {where} ORDER BY embedding <=> %s::vector LIMIT %s",
                    [text, *values, text, count],
                )
                found.append([Near(id, cosine, metadata) for id, cosine, metadata in rows])
        return found

    def documents(self, ids: Sequence[str]) -> dict[str, EmbeddedDocument]:
        """The documents of those ids."""
        rows = self._run(f"SELECT {_COLUMNS} FROM {{table}} WHERE langchain_id = ANY(%s)", [list(ids)])
        return {each.document.id: each for each in map(_embedded, rows)}

    def pages(self, part: Part | None, *, vectors: bool) -> Iterator[list[EmbeddedDocument]]:
        """All that pass, in the order of their ids."""
        where, values = _where(part)
        columns = _COLUMNS if vectors else _COLUMNS.replace("embedding", "NULL")
        after = ""
        while True:
            rows = self._run(
                f"SELECT {columns} FROM {{table}} WHERE langchain_id > %s AND {where} "
                "ORDER BY langchain_id LIMIT %s",
                [after, *values, _AT_ONCE],
            ).fetchall()
            if not rows:
                return
            yield [_embedded(row) for row in rows]
            after = rows[-1][0]

    def close(self) -> None:
        """Let go of the connection."""
        if self._opened is not None:
            self._opened.close()


def _loaded(text: str | bytes) -> Any:
    """JSON as it was given: the database writes a great float as a whole number of all its digits."""
    return json.loads(
        text, parse_int=lambda number: int(number) if abs(int(number)) < _LARGEST else float(number)
    )


def _literal(vector: Vector) -> str:
    return json.dumps([float(number) for number in vector])


def _embedded(row: Sequence[Any]) -> EmbeddedDocument:
    id, text, metadata, vector = row
    numbers = np.asarray(json.loads(vector) if vector else (), np.float32)
    return EmbeddedDocument(document=Document(id=id, text=text, metadata=metadata), vector=numbers)


def _where(part: Part | None) -> tuple[str, list[Any]]:
    """A weaker filter in SQL, and its values."""
    if part is None:
        return "TRUE", []
    if isinstance(part, Condition):
        return _condition(part)
    inner = [_where(each) for each in part.parts]  # type: ignore[union-attr]
    if not inner:
        return "FALSE", []
    joint = " AND " if isinstance(part, Every) else " OR "
    return f"({joint.join(text for text, _ in inner)})", list(
        chain.from_iterable(values for _, values in inner)
    )


def _condition(condition: Condition) -> tuple[str, list[Any]]:
    """JSON compares numbers exactly; True is no number there, so that booleans are looked at afterwards."""
    field = condition.field
    if condition.test == "exists":
        return "jsonb_exists(langchain_metadata, %s)", [field]
    if condition.test == "in":
        numbers = (int(each) if isinstance(each, bool) else each for each in condition.operands)
        same = [json.dumps(each) for each in numbers]
        some = any(not isinstance(each, str) and each in (0, 1) for each in condition.operands)
        test, values = "(langchain_metadata -> %s) = ANY(%s::jsonb[])", [field, same]
        return (f"({test} OR {_KIND} = 'boolean')", [*values, field]) if some else (test, values)
    sign = "<=" if condition.test in ("lt", "lte") else ">="
    test = f"((langchain_metadata -> %s) {sign} %s::jsonb OR {_KIND} = 'boolean')"
    return test, [field, json.dumps(condition.operands[0]), field]
