"""The tables of speed for README.md and docs/engine.md, made of the recorded figures and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from o1_retriever.reporting import markdown_table

Rows = Sequence[Mapping[str, object]]

# A pattern of names: what a reader sees of it. Groups of the pattern stand in the text.
_TITLES = {
    r"encode_queries/(\w+)/q1/ratio": "think about one query, {0} model, against two passes",
    r"encode_queries/(\w+)/q(\d+)/ratio": "think about {1} queries, {0} model, against two passes",
    r"encode_queries/(\w+)/q(\d+)/int8_ratio": "think about {1} queries, {0} model in 8 bits, against those",
    r"roofline/(\w+)/q(\d+)": "share of the floor reached, {1} queries, {0} model",
    r"sampling/(\w+)/q(\d+)": "share of the time spent on drawing tokens, {1} queries, {0} model",
    r"encode_documents/ratio": "embed documents, against sentence-transformers",
    r"encode_documents/peak_ratio": "peak memory of that, against sentence-transformers",
    r"encode_documents/memory_growth/(\d+)_to_(\d+)": "growth of memory from {0} to {1} documents",
    r"cached_query/p50_ms": "a query asked before, from the disk",
    r"cached_query/search_(\w+)_p50_ms": "a whole search with a query asked before, {0} vectors",
    r"search/add_exponent": "exponent of the time to add vectors",
    r"search/query_exponent": "exponent of the time of a query",
    r"local_thinker/(\w+)/q1/ms": "three thoughts of SmolLM2-135M about one query",
    r"local_thinker/(\w+)/q(\d+)/ms": "three thoughts of SmolLM2-135M about each of {1} queries",
    r"local_thinker/(\w+)/q1/ratio_to_generate": "that of one query in float32, against generate",
    r"local_thinker/(\w+)/q1/ratio_to_llamacpp": "that of one query, against llama.cpp",
    r"local_thinker/(\w+)/q(\d+)/ratio_to_generate": "that of {1} queries in float32, against generate",
    r"local_thinker/(\w+)/q(\d+)/ratio_to_llamacpp": "that of {1} queries, against llama.cpp",
    r"local_thinker/(\w+)/avx2/q(\d+)/ratio_to_generate": "with AVX2 alone, {1} queries, against generate",
    r"local_thinker/(\w+)/avx2/q(\d+)/ratio_to_llamacpp": "with AVX2 alone, {1} queries, against llama.cpp",
    r"local_thinker/(\w+)/q(\d+)/peak_mb": "peak memory of that, {1} queries, the encoder included",
    r"local_thinker/(\w+)/q(\d+)/peak_mb_llamacpp": "llama.cpp's peak memory, {1} queries",
    r"awaited/(\w+)/q(\d+)/ratio": "{1} queries awaited together, {0} model, against one after the other",
    r"awaited/(\w+)/q(\d+)/loop_gap_p99_ms": "longest turn of an event loop (of 99 %), {1} queries in flight",
    r"awaited/(\w+)/q(\d+)/idle_gap_p99_ms": "the same with nothing in flight",
    r"import_time/package_s": "import o1_retriever",
    r"import_time/cli_help_s": "o1-retriever --help",
}
_FORMS = {"ratio": "{:.1f}×", "share": "{:.0%}"}
_LARGE = 1000
_SHORT = (
    "local_thinker/135M/q1/ms",
    "cached_query/p50_ms",
    "encode_documents/ratio",
)


def speed_table(rows: Rows) -> str:
    """What a new reader wants to know."""
    return _table([row for row in rows if str(row["name"]).startswith(_SHORT)])


def full_table(rows: Rows) -> str:
    """All that was measured, GPU figures included."""
    return _table(rows)


def _table(rows: Rows) -> str:
    titles = {str(row["name"]): _title(str(row["name"])) for row in rows}
    body = [[titles[str(row["name"])] or "", _value(row)] for row in rows if titles[str(row["name"])]]
    machines = sorted({str(row["machine"]) for row in rows if titles[str(row["name"])]})
    return "\n".join([markdown_table(["", "measured"], body), "", f"Measured on: {'; '.join(machines)}."])


def _title(name: str) -> str | None:
    for pattern, title in _TITLES.items():
        match = re.fullmatch(pattern, name)
        if match:
            return title.format(*match.groups())
    return None


def _value(row: Mapping[str, object]) -> str:
    value, unit = float(str(row["value"])), str(row["unit"]).partition(",")[0]
    return _FORMS.get(unit, f"{{:{',.0f' if value >= _LARGE else '.3g'}}} {unit}").format(value)
