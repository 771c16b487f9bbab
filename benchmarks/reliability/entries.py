"""Every public entry with thousands of inputs that nobody would send, drawn by hypothesis.

An entry may answer, or raise an error of this library's tree; an HTTP route may answer with anything below
500. Anything else is uncaught, and every vector that comes back has to be finite. The models are tiny.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.record import Figure
from o1_retriever import Index, Retriever, ThinkingEmbedder, ThoughtSettings
from o1_retriever.cache import ThoughtCache
from o1_retriever.documents import SUFFIXES, Document, ReadOptions, read_documents, split_passages
from o1_retriever.encoders import CallableEncoder
from o1_retriever.errors import O1RetrieverError
from o1_retriever.index.filters import OPERATORS
from o1_retriever.query import Conversation, read_history
from o1_retriever.thinkers import RecordedThinker
from tests.support.adapters import TEXTS, bag_of_words, small_embedder

_SHORT = ThoughtSettings(n_thoughts=2, max_new_tokens=4)
GROUPS = ("embedding", "searching", "reading", "adapters", "server")
_ENTRIES = 36  # of all groups
_SHOWN = 3  # inputs of each kind of failure that are printed

# What is drawn. ---------------------------------------------------------------------------------------

_SPELLED = [
    "<query>",
    "<emb>",
    "<thought>",
    "<doc>",
    "</s>",
    "<|im_start|>",
    "[SEP]",
    "\x00",
    "\ud800",
    " ",
    "",
]
texts = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(), max_size=12),
    st.lists(
        st.sampled_from([*_SPELLED, "mirror", "glass", "\n", "\u202e", "e\u0301", "🧊"]), max_size=8
    ).map("".join),
    st.integers(1, 3000).map(lambda n: "word " * n),
)
numbers = st.one_of(
    st.integers(-3, 12), st.integers(), st.floats(), st.sampled_from([2**63, -(2**64), 10**400, True, 1e308])
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts, st.binary(max_size=12))
arrays = st.builds(
    lambda rows, width, fill, kind: np.full((rows, width), fill).astype(kind, casting="unsafe"),
    st.integers(0, 3), st.sampled_from([0, 1, 255, 256, 257]), st.sampled_from([0, 1, -1, 100]),
    st.sampled_from(["f2", "f4", "f8", "i4", "O", "c8"]),
)  # fmt: skip
vectors = st.builds(
    lambda seed, scale: np.random.default_rng(seed).normal(size=(1, 256)) * scale,
    st.integers(0, 99),
    st.sampled_from([1, 1, 1, 0, 1e-30, 1e30, np.nan]),
)
anything: st.SearchStrategy[Any] = st.recursive(
    st.one_of(scalars, scalars, arrays, st.sampled_from([object(), {1, 2}, range(3), Ellipsis, int])),
    lambda each: st.one_of(
        st.lists(each, max_size=4), st.dictionaries(texts, each, max_size=4), st.tuples(each, each)
    ),
    max_leaves=8,
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda each: st.one_of(st.lists(each, max_size=4), st.dictionaries(texts, each, max_size=4)),
    max_leaves=8,
)
mostly_texts = st.one_of(
    st.lists(texts, max_size=4), st.lists(st.one_of(texts, anything), max_size=3), anything
)
turns = st.one_of(
    st.none(),
    st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant", "tool", "x"]), "content": anything}
            ),
            st.tuples(texts, texts),
            anything,
        ),
        max_size=3,
    ),
    anything,
)
fields = st.one_of(st.sampled_from(["topic", "page", "source", "tags"]), texts)
filters: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.dictionaries(fields, anything, max_size=2), anything),
    lambda each: st.one_of(
        st.dictionaries(st.sampled_from(["$and", "$or", "$not", *OPERATORS]), st.one_of(each, st.lists(each, max_size=3)), max_size=2),
        st.dictionaries(fields, st.dictionaries(st.sampled_from(sorted(OPERATORS)), anything, max_size=2), max_size=2),
    ),
    max_leaves=5,
)  # fmt: skip
documents = st.one_of(
    texts,
    st.fixed_dictionaries(
        {"text": st.one_of(texts, anything)}, optional={"id": anything, "metadata": anything}
    ),
    st.builds(lambda i, t, m: Document(id=i, text=t, metadata=m), anything, anything, anything),
    anything,
)
lines = st.one_of(
    json_values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=30),
    texts.map(lambda t: t.encode("utf-8", "replace")),
)
_FIELDS = ("query", "text", "thoughts", "thought", "pos", "neg", "role", "content", "id")
rows = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(_FIELDS, st.one_of(texts, st.lists(texts, max_size=3), json_values))
).map(lambda value: json.dumps(value).encode())
contents = st.one_of(
    st.lists(st.one_of(lines, rows), max_size=5).map(b"\n".join), st.binary(max_size=200), st.just(b"")
)


def of_settings(name: str) -> st.SearchStrategy[Any]:
    """A value for a setting."""
    return st.one_of(numbers, numbers, st.sampled_from(["always", "never", "auto", name]), anything)


# What is called. --------------------------------------------------------------------------------------


class Entries:
    """The public entries, on tiny models: each a strategy and a call that returns what has to be finite."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.pair = small_embedder()
        self.index = Index(folder / "index", self.pair)
        self.index.add(
            Document(id=name, text=text, metadata={"page": 1, "tags": ["a", 2]})
            for name, text in TEXTS.items()
        )
        self.retriever = Retriever(self.pair, self.index)

    def of(self, group: str) -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Any]]]:
        """Those of a group, by name."""
        groups = {
            "embedding": self._embedding,
            "searching": self._searching,
            "reading": self._reading,
            "adapters": self._adapters,
            "server": self._server,
        }
        return groups[group]()

    def _embedding(self) -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Any]]]:
        from tests.support.tiny import tiny_model

        model, tokenizer = tiny_model("llama")
        pair = self.pair
        local = ThinkingEmbedder.from_model(model, tokenizer, settings=_SHORT, cache=self._folder / "cache")
        several = st.fixed_dictionaries(
            {"queries": mostly_texts},
            optional={"histories": st.one_of(st.lists(turns, max_size=3), anything), "thoughts": st.one_of(st.lists(mostly_texts, max_size=3), anything)},
        )  # fmt: skip
        many = st.fixed_dictionaries(
            {"documents": mostly_texts},
            optional={"truncate_dim": of_settings("dim"), "batch_size": of_settings("size"), "normalize_embeddings": st.booleans(), "convert_to_tensor": st.booleans()},
        )  # fmt: skip
        return {
            "ThinkingEmbedder.embed_query, one model": (
                st.tuples(st.one_of(texts, texts, anything), turns),
                lambda x: local.embed_query(x[0], history=x[1]).vectors,
            ),
            "ThinkingEmbedder.embed_queries, one model": (
                several,
                lambda x: [each.vector for each in local.embed_queries(x.pop("queries"), **x)],
            ),
            "ThinkingEmbedder.embed_queries, a pair": (
                several,
                lambda x: [each.vector for each in pair.embed_queries(x.pop("queries"), **x)],
            ),
            "ThinkingEmbedder.encode_documents, one model": (
                many,
                lambda x: local.encode_documents(x.pop("documents"), **x),
            ),
            "ThinkingEmbedder.encode_queries": (many, lambda x: pair.encode_queries(x.pop("documents"), **x)),
            "ThinkingEmbedder.think": (
                st.tuples(mostly_texts, of_settings("n")),
                lambda x: _nothing(local.think(x[0], n_thoughts=None if x[1] is None else min(x[1], 5) if isinstance(x[1], int) else x[1])),
            ),
            "ThinkingEmbedder.stream_thoughts": (
                st.tuples(st.one_of(texts, anything), turns),
                lambda x: _nothing([*local.stream_thoughts(x[0], history=x[1])]),
            ),
            "ThinkingEmbedder.from_parts, a function's vectors": (
                st.tuples(st.one_of(vectors, anything, arrays), texts),
                lambda x: ThinkingEmbedder.from_parts(None, lambda asked: [x[0]] * len(asked), cache=False).encode_documents([x[1]]),
            ),
            "ThinkingEmbedder.from_parts, a function's thoughts": (
                st.tuples(anything, texts),
                lambda x: ThinkingEmbedder.from_parts(lambda asked, n: x[0], CallableEncoder(bag_of_words, name="b"), cache=False).embed_query(x[1]).vectors,
            ),
            "ThoughtSettings": (
                st.fixed_dictionaries({}, optional={name: of_settings(name) for name in ThoughtSettings.__slots__}),
                lambda x: _nothing(ThoughtSettings(**x)),
            ),
        }  # fmt: skip

    def _searching(self) -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Any]]]:
        index, retriever = self.index, self.retriever
        asked = st.fixed_dictionaries(
            {"query": st.one_of(texts, anything)},
            optional={"k": of_settings("k"), "where": filters, "history": turns, "thoughts": mostly_texts, "thinking": of_settings("t"), "rounds": st.one_of(st.integers(-1, 2), anything)},
        )  # fmt: skip
        return {
            "Index.add": (
                st.one_of(st.lists(documents, max_size=3), anything),
                lambda x: _nothing(index.add(x)),
            ),
            "Index.search": (
                st.tuples(
                    st.one_of(vectors, vectors, arrays, anything),
                    st.one_of(st.integers(1, 9), of_settings("k")),
                    st.one_of(st.none(), filters),
                ),
                lambda x: [hit.score for hits in index.search(x[0], k=x[1], where=x[2]) for hit in hits],
            ),
            "Index.ids": (filters, lambda x: _nothing(index.ids(x))),
            "Index.get": (anything, lambda x: _nothing(index.get(x))),
            "Index.vectors": (anything, lambda x: index.vectors(x)),
            "Index.delete": (
                st.tuples(st.one_of(st.none(), anything), st.one_of(st.none(), filters)),
                lambda x: _nothing(index.delete(x[0], where=x[1])),
            ),
            "Retriever.search": (
                asked,
                lambda x: [hit.score for hit in retriever.search(x.pop("query"), **x)],
            ),
            "Retriever.explain": (asked, lambda x: _nothing(retriever.explain(x.pop("query"), **x))),
            "Document.of": (documents, lambda x: _nothing(Document.of(x))),
            "Conversation.of": (turns, lambda x: _nothing(Conversation.of(x))),
        }

    def _file(self, content: bytes, suffix: str) -> Path:
        path = self._folder / f"file{suffix}"
        path.write_bytes(content)
        return path

    def _reading(self) -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Any]]]:
        from o1_retriever_training.joint.recipe import TrainRecipe
        from o1_retriever_training.rows import read_rows

        suffixes = st.sampled_from(sorted(SUFFIXES))
        recipe = st.one_of(
            json_values,
            st.fixed_dictionaries({}, optional=dict.fromkeys(("model", "data", "losses", "optimisation", "output", "checkpoints"), json_values)),
        )  # fmt: skip
        return {
            "ThoughtCache": (
                of_settings("b"),
                lambda x: ThoughtCache(self._folder / "other", max_bytes=x).close(),
            ),
            "documents.read_documents": (
                st.tuples(contents, suffixes),
                lambda x: _nothing([*read_documents(self._file(*x))]),
            ),
            "documents.split_passages": (
                st.tuples(texts, of_settings("c"), of_settings("o")),
                lambda x: _nothing(split_passages(x[0], max_characters=x[1], overlap=x[2])),
            ),
            "documents.ReadOptions": (
                st.fixed_dictionaries({}, optional=dict.fromkeys(ReadOptions.__slots__, anything)),
                lambda x: _nothing(ReadOptions(**x)),
            ),
            "query.read_history": (
                st.tuples(contents, st.sampled_from([".json", ".jsonl"])),
                lambda x: _nothing(read_history(self._file(*x))),
            ),
            "RecordedThinker": (
                st.tuples(contents, st.sampled_from([".jsonl", ".jsonl.gz"])),
                lambda x: _nothing(RecordedThinker(self._file(*x))),
            ),
            "training.read_rows": (
                st.tuples(contents, st.sampled_from([".jsonl", ".jsonl.gz", ".parquet", ".zst"])),
                lambda x: _nothing([*read_rows(self._file(*x))]),
            ),
            "training.TrainRecipe": (recipe, lambda x: _nothing(TrainRecipe.of(x))),
        }

    def _adapters(self) -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Any]]]:
        from chroma_o1_retriever import O1EmbeddingFunction
        from langchain_o1_retriever import O1Embeddings
        from llama_index_o1_retriever import O1Embedding

        chain, llama = O1Embeddings(embedder=self.pair), O1Embedding(embedder=self.pair)
        function = O1EmbeddingFunction(self.pair)
        return {
            "LangChain, O1Embeddings.embed_documents": (mostly_texts, lambda x: chain.embed_documents(x)),
            "LangChain, O1Embeddings.embed_query": (
                st.one_of(texts, anything),
                lambda x: [chain.embed_query(x)],
            ),
            "LlamaIndex, O1Embedding": (
                st.lists(texts, max_size=3),
                lambda x: llama.get_text_embedding_batch(x),
            ),
            "Chroma, O1EmbeddingFunction": (st.lists(texts, min_size=1, max_size=3), lambda x: function(x)),
        }

    def _server(self) -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], Any]]]:
        ask = self._client()
        inputs = st.one_of(
            texts,
            st.lists(texts, max_size=3),
            json_values,
            st.lists(st.integers(-2, 200_000), max_size=4),
        )
        names = st.sampled_from(["o1-retriever", "o1-retriever:fast", "o1-retriever:document", "x"])
        embeddings = _bodies(
            {"input": inputs},
            model=names,
            dimensions=json_values,
            encoding_format=st.sampled_from(["float", "base64", "x"]),
            user=json_values,
        )
        searches = _bodies(
            {"query": st.one_of(texts, json_values)},
            k=json_values,
            where=filters,
            thinking=json_values,
            thoughts=json_values,
            history=json_values,
            thought_settings=json_values,
        )
        documents = st.one_of(st.lists(texts, max_size=3), json_values)
        ranks = _bodies({"query": texts, "documents": documents}, top_n=json_values, model=json_values)
        return {
            "POST /v1/embeddings": (embeddings, lambda x: ask("/v1/embeddings", x)),
            "POST /v1/search": (searches, lambda x: ask("/v1/search", x)),
            "POST /v1/explain": (searches, lambda x: ask("/v1/explain", x)),
            "POST /v1/rerank": (ranks, lambda x: ask("/v1/rerank", x)),
        }

    def _client(self) -> Callable[[str, Any], Any]:
        from starlette.testclient import TestClient

        from o1_retriever_server import create_app

        # The application's own handlers answer; what they do not catch is raised here.
        client = TestClient(create_app(self.pair, {"notes": self.index}), base_url="http://127.0.0.1")
        client.__enter__()

        def ask(path: str, body: Any) -> Any:
            content = json.dumps(body, default=str).encode("utf-8", "surrogatepass")
            answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
            if answer.status_code >= 500:
                raise RuntimeError(f"{answer.status_code}: {answer.text[:300]}")
            return (
                _of_answer(answer.json())
                if answer.status_code == 200 and path.endswith("embeddings")
                else None
            )

        return ask


def _nothing(found: Any) -> None:
    """What came back holds no vectors."""


def _bodies(needed: dict[str, Any], **optional: Any) -> st.SearchStrategy[Any]:
    """Bodies of requests: of the right shape mostly, or any JSON."""
    return st.one_of(json_values, st.fixed_dictionaries(needed, optional=optional))


def _of_answer(body: Any) -> list[Any]:
    found = [each["embedding"] for each in body["data"]]
    return [np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str) else row for row in found]


# The row. ---------------------------------------------------------------------------------------------


def measure(*, count: int = 10_000, only: Sequence[str] = GROUPS) -> Iterator[Figure]:
    """`entries/<group>/...`: entries, inputs, errors that are none of the library's, vectors not finite.

    Each entry has its part of `count`, as if all groups were drawn.
    """
    os.environ["O1_RETRIEVER_CACHE"] = tempfile.mkdtemp()
    for group in only:
        with tempfile.TemporaryDirectory() as folder:
            done = [_Entry(name, *entry) for name, entry in Entries(Path(folder)).of(group).items()]
            for one in done:
                one.run(-(-count // _ENTRIES))
                print(f"   {one.name}: {one.tried} inputs, {one.answered} answered", flush=True)
        uncaught = sum(sum(one.uncaught.values()) for one in done)
        infinite = sum(one.infinite for one in done)
        name = f"entries/{group}"
        yield Figure(name=f"{name}/entries", value=len(done), unit="entries")
        yield Figure(name=f"{name}/inputs", value=sum(one.tried for one in done), unit="inputs")
        yield Figure(name=f"{name}/uncaught", value=uncaught, unit="errors", better="lower")
        yield Figure(name=f"{name}/not_finite", value=infinite, unit="vectors", better="lower")


class _Entry:
    """What one entry does with many inputs."""

    def __init__(self, name: str, inputs: st.SearchStrategy[Any], call: Callable[[Any], Any]) -> None:
        self.name, self._inputs, self._call = name, inputs, call
        self.uncaught: Counter[str] = Counter()
        self.tried = self.answered = self.infinite = 0

    def run(self, count: int) -> None:
        """So many inputs, the same ones in every run."""
        how = settings(
            max_examples=count, database=None, deadline=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        how(given(self._inputs)(self._one))()

    def _one(self, value: Any) -> None:
        shown = repr(value)[:300]
        self.tried += 1
        try:
            found = self._call(value)
        except O1RetrieverError:
            return
        except Exception as error:
            self._note(error, shown)
            return
        self.answered += 1
        if found is not None and not all(np.isfinite(np.asarray(row, np.float64)).all() for row in found):
            self.infinite += 1
            print(f"   {self.name}: not finite for {shown}", flush=True)

    def _note(self, error: Exception, shown: str) -> None:
        ours = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "reliability" not in frame.filename
        ]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        key = f"{self.name}: {type(error).__name__} at {place}"
        self.uncaught[key] += 1
        if self.uncaught[key] <= _SHOWN:
            where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(ours[-4:]))
            print(f"   {key}: {str(error)[:160]!r} ({where}) for {shown}", flush=True)
