"""The tables and curves of README.md and of the pages in docs, made of the recorded figures and nothing else.

Run from the repository's root after the scripts that measure:

    python -m benchmarks.quality.pages
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.fictional_world.page import ablation_table, two_hop_table
from benchmarks.quality.card import with_results
from benchmarks.record import RESULTS, ROOT, read
from benchmarks.reliability.page import reliability_table
from benchmarks.speed.page import full_table, speed_table
from o1_retriever.reporting import markdown_table

Rows = Sequence[Mapping[str, object]]

# What a reader sees of each set, in the order of the table.
SETS = {
    "scifact": "SciFact: 300 claims, 5,183 abstracts",
    "hotpotqa_1k": "HotpotQA: 500 questions, 9,822 paragraphs",
    "strategyqa_facts": "StrategyQA: 229 questions, 6,096 facts",
    "entailmentbank": "EntailmentBank: 339 questions, 11,571 facts",
    "qasc_2hop": "QASC: 926 questions, 12,214 facts",
}
COLUMNS = {
    "bm25": "BM25",
    "minilm": "MiniLM",
    "minilm_with_thoughts": "MiniLM + thoughts",
    "hybrid": "MiniLM + BM25",
    "hybrid_with_thoughts": "MiniLM + BM25 + thoughts",
    "o1_embedder_22m_fast": "o1-embedder-22m, fast",
    "o1_embedder_22m_thinking": "o1-embedder-22m, thinking",
}
# The README shows what a strong writer's thoughts are worth; our small model has a page of its own.
SHOWN = [name for name in COLUMNS if not name.startswith("o1_embedder")]
WORDINGS = {
    "as_written": "as written",
    "typos": "typos",
    "synonyms": "synonyms",
    "upper_case": "upper case",
    "lower_case": "lower case",
}
# Systems that think, and the one without thoughts that each is compared with.
GAINS = {
    "minilm_with_thoughts": "minilm",
    "hybrid_with_thoughts": "hybrid",
    "o1_embedder_22m_thinking": "o1_embedder_22m_fast",
}
CARD = "models/o1-embedder-22m/README.md"
P_VALUE = "o1_embedder_22m_thinking_p"
WINS = "o1_embedder_22m/sets_where_thinking_wins"
LEVEL = 0.05
_NONE = "–"


def main() -> None:
    """Write the tables into the pages, and draw the curves beside them."""
    for page, tables in PAGES.items():
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        for name, (results, table) in tables.items():
            text = filled(text, name, table(read(RESULTS / results)))
        if page == CARD:
            text = with_results(text, read(RESULTS / "quality.jsonl"), list(SETS))
        path.write_text(text, encoding="utf-8")
    from benchmarks.fictional_world.page import draw as draw_world
    from benchmarks.quality.draw import draw

    draw(read(RESULTS / "curves.jsonl"), ROOT / "docs" / "curves.png")
    draw_world(read(RESULTS / "fictional_world.jsonl"), ROOT / "docs" / "fictional-world.png")


def filled(text: str, name: str, table: str) -> str:
    """The page with a table put between its two marks; raises `ValueError` where they are missing."""
    start, end = f"<!-- table: {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"The page has no place for the table {name}; expected {start} and {end}.")
    return pattern.sub(lambda _: f"{start}\n{table}\n{end}", text)


def quality_table(rows: Rows) -> str:
    """Test splits, a row per set that was measured."""
    values = _values(rows)
    body = [
        [title, *(_cell(values, f"{name}/{column}") for column in SHOWN)]
        for name, title in SETS.items()
        if f"{name}/bm25" in values
    ]
    return markdown_table(["nDCG@10", *(COLUMNS[name] for name in SHOWN)], body)


def mini_table(rows: Rows) -> str:
    """o1-embedder-22m alone: what thinking changes, whether chance explains it, the control and the costs."""
    values = _values(rows)
    heads = [
        "nDCG@10", "fast", "share of MiniLM", "thinking", "p", "another's thoughts", "tokens a query",
        "ms, fast", "ms, thinking",
    ]  # fmt: skip
    body = []
    for name, title in SETS.items():
        if f"{name}/o1_embedder_22m_fast" not in values:
            continue
        share = values[f"{name}/o1_embedder_22m_fast"] / values[f"{name}/minilm"]
        cells = [
            *(
                _cell(values, f"{name}/{key}", ".3f")
                for key in ("o1_embedder_22m_thinking", P_VALUE, "o1_embedder_22m_other_thoughts")
            ),
            _cell(values, f"{name}/o1_embedder_22m_thinking/tokens", ".0f"),
            *(_cell(values, f"{name}/o1_embedder_22m_{key}/ms", ".1f") for key in ("fast", "thinking")),
        ]
        body.append(
            [title.partition(":")[0], _cell(values, f"{name}/o1_embedder_22m_fast"), f"{share:.1%}", *cells]
        )
    return markdown_table(heads, body)


def local_table(rows: Rows) -> str:
    """What an untrained small model gains by its thoughts, and what another query's thoughts do."""
    values = _values(rows)
    heads = [
        "nDCG@10",
        "MiniLM",
        "with its thoughts",
        "p",
        "with another's",
        "MiniLM + BM25",
        "with its thoughts",
        "p",
    ]
    keys = (
        "minilm",
        "minilm_local",
        "minilm_local/p",
        "minilm_local_others",
        "hybrid",
        "hybrid_local",
        "hybrid_local/p",
    )
    names = list(dict.fromkeys("/".join(name.split("/")[:2]) for name in values))
    body = [[name.replace("/", ", "), *(_cell(values, f"{name}/{key}") for key in keys)] for name in names]
    return markdown_table(heads, body)


def audit_table(rows: Rows) -> str:
    """Own thoughts and each control by set and system, with p and the effect size of the gain."""
    values = _values(rows)
    columns = {
        "alone": "the query alone",
        "others": "another's thoughts",
        "empty": "empty",
        "repeated": "the query again",
        "random": "random words",
    }
    names = list(dict.fromkeys(name.removesuffix("/own") for name in values if name.endswith("/own")))
    body = [
        [
            f"{name.rsplit('/', 2)[0]}, {COLUMNS[name.rsplit('/', 1)[1]]}",
            _cell(values, f"{name}/own"),
            *(_against(values, f"{name}/{key}") for key in columns),
        ]
        for name in names
    ]
    return markdown_table(["nDCG@10", "own thoughts", *columns.values()], body)


def _against(values: Mapping[str, float], name: str) -> str:
    if name not in values:
        return _NONE
    p, effect = values[f"{name}/p"], values[f"{name}/effect"]
    return f"{values[name]:.3f} ({'p < 0.002' if p < 0.002 else f'p {p:.3f}'}, d {effect:+.2f})"


def guard_table(rows: Rows) -> str:
    """Good and bad thoughts, as they are and guarded."""
    values = _values(rows)
    heads = ["nDCG@10", "thoughts", "query alone", "with them", "guarded", "p", "dropped"]
    pattern = re.compile(r"guard/(?P<set>[^/]+/[^/]+)/(?:hostile/)?(?P<kind>\w+)/fast")
    found = [(match, name.removesuffix("/fast")) for name in values if (match := pattern.fullmatch(name))]
    body = [
        [
            match["set"].replace("/", ", "),
            match["kind"].replace("_", " "),
            *(_cell(values, f"{name}/{key}") for key in ("fast", "plain", "guarded", "p")),
            f"{values[f'{name}/dropped']:.0%}",
        ]
        for match, name in found
    ]
    return markdown_table(heads, body)


def examples_table(rows: Rows) -> str:
    """Queries that thinking helped most and hurt most, with the thoughts and where the relevant ones went."""
    heads = ["", "query", "thoughts", "change in nDCG@10", "places, fast", "places, thinking"]
    body = [
        [
            str(number),
            f"{row['set']} `{row['query']}`",
            "; ".join(dict.fromkeys(map(str, _list(row["thoughts"])))),
            f"{row['gain']:+.2f}",
            *(", ".join(map(str, _list(row[key]))) or _NONE for key in ("places_fast", "places_thinking")),
        ]
        for number, row in enumerate(rows, 1)
    ]
    return markdown_table(heads, body)


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


def robustness_table(rows: Rows) -> str:
    """Every set under every wording, all systems."""
    values = _values(rows)
    body = [
        [f"{name}, {title}", *(_cell(values, f"{name}/{wording}/{column}") for column in COLUMNS)]
        for name in _sets(values)
        for wording, title in WORDINGS.items()
        if f"{name}/{wording}/bm25" in values
    ]
    return markdown_table(["nDCG@10", *COLUMNS.values()], body)


def gains_table(rows: Rows) -> str:
    """What thinking gains under every wording."""
    values = _values(rows)
    heads = ["gain in nDCG@10", *WORDINGS.values()]
    body = [
        [
            f"{name}, {COLUMNS[base]}",
            *(_cell(values, f"{name}/{wording}/gain/{key}", "+.3f") for wording in WORDINGS),
        ]
        for name in _sets(values)
        for key, base in GAINS.items()
        if f"{name}/as_written/gain/{key}" in values
    ]
    return markdown_table(heads, body)


def curves_table(rows: Rows) -> str:
    """The points of the curves: a row per curve, its points in one line."""
    values = _values(rows)
    points: dict[str, list[str]] = {}
    for name, value in values.items():
        curve, point = _curve(name)
        if curve:
            points.setdefault(curve, []).append(f"{point}: {value:.3f}")
    return markdown_table(
        ["curve", "nDCG@10"], [[key, ", ".join(row)] for key, row in points.items()], texts=(0, 1)
    )


def _curve(name: str) -> tuple[str, str]:
    """(the curve a figure lies on, its place there), two empty texts for what lies on none."""
    match = re.fullmatch(r"(?P<set>\w+/\w+)/(?P<model>minilm|o1_embedder_22m)/(?P<point>.+)", name)
    if match is None:
        return "", ""
    model = COLUMNS["minilm"] if match["model"] == "minilm" else "o1-embedder-22m"
    *_, last = match["point"].split("/")
    kind = "length of 3 thoughts" if "/" in match["point"] else "number of thoughts"
    return f"{match['set']}, {model}, {kind}", last.replace("n_thoughts=", "").replace("=", " ")


def _sets(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys("/".join(name.split("/")[:2]) for name in values))


def _values(rows: Rows) -> dict[str, float]:
    return {str(row["name"]): float(str(row["value"])) for row in rows}


def _cell(values: Mapping[str, float], name: str, form: str = ".3f") -> str:
    return format(values[name], form) if name in values else _NONE


# Page: name of a table there: (file of figures, how it is rendered).
PAGES: dict[str, dict[str, tuple[str, Callable[[Rows], str]]]] = {
    "README.md": {
        "quality": ("quality.jsonl", quality_table),
        "speed": ("speed.jsonl", speed_table),
    },
    "docs/guard.md": {
        "guard": ("retrieval.jsonl", guard_table),
    },
    "docs/local-models.md": {
        "local": ("local_models.jsonl", local_table),
    },
    "docs/o1-embedder-22m.md": {
        "mini": ("quality.jsonl", mini_table),
        "examples": ("examples.jsonl", examples_table),
    },
    CARD: {
        "mini": ("quality.jsonl", mini_table),
        "examples": ("examples.jsonl", examples_table),
    },
    "docs/engine.md": {"speed-all": ("speed.jsonl", full_table)},
    "docs/evaluation.md": {
        "audit": ("audit.jsonl", audit_table),
        "gains": ("robustness.jsonl", gains_table),
        "robustness": ("robustness.jsonl", robustness_table),
        "curves": ("curves.jsonl", curves_table),
    },
    "docs/reliability.md": {"reliability": ("reliability.jsonl", reliability_table)},
    "docs/fictional-world.md": {
        "two-hop": ("fictional_world.jsonl", two_hop_table),
        "ablation": ("fictional_world.jsonl", ablation_table),
    },
}


if __name__ == "__main__":
    main()
