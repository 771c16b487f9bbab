"""The table of docs/reliability.md, made of the recorded figures and nothing else."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from o1_retriever.reporting import markdown_table

Rows = Sequence[Mapping[str, object]]

# Command: what happens; the figures that have to be 0 or small, with what they are; those that say how often.
_LINES: tuple[tuple[str, str, dict[str, str], dict[str, str]], ...] = (
    *(
        (
            "kill_points",
            f"`kill -9` while {what}, then the same command again",
            {f"kill_points/{stage}/differences": "results that differ"},
            {f"kill_points/{stage}/kills": "kills"},
        )
        for stage, what in {
            "index": "a folder is indexed",
            "cache": "thoughts and vectors are put into the cache",
            "synthesize": "training data is written",
            "train": "a model is trained",
            "embed": "a corpus is embedded to files",
            "load": "embedded files are loaded into an index",
        }.items()
    ),
    *(
        (
            "disk",
            what,
            {f"disk/{part}/*/wrong": "wrong answers, undocumented errors or hangs"},
            {f"disk/{part}/*/tried": "runs"},
        )
        for part, what in {
            "full": "a full disk: a tmpfs too small for the work",
            "read_only": "a disk that is read-only",
            "pages": "a damaged page in any file of an index, a cache, training data, weights",
            "clock": "a clock ten years wrong, both ways",
            "locks": "a file system whose locks fail as on NFS",
        }.items()
    ),
    (
        "sharing",
        "two processes index one folder",
        {"sharing/index/wrong": "times something was doubled, lost or unclear"},
        {"sharing/index/2_processes/times": "times"},
    ),
    (
        "sharing",
        "two processes write one output of training data",
        {"sharing/synthesize/wrong": "times something was doubled, lost or unclear"},
        {"sharing/synthesize/2_processes/times": "times"},
    ),
    (
        "sharing",
        "ten processes share one cache",
        {"sharing/shared_cache/wrong": "times something was lost or unclear"},
        {"sharing/shared_cache/10_processes/times": "times"},
    ),
    (
        "entries",
        "random input to every public entry, drawn by hypothesis",
        {"entries/*/uncaught": "undocumented errors", "entries/*/not_finite": "vectors that are not finite"},
        {"entries/*/inputs": "inputs", "entries/*/entries": "entries"},
    ),
    *(
        (
            "hostile",
            what,
            {f"hostile/{kind}/harmful": "neither refused nor inert"},
            {f"hostile/{kind}/cases": "cases"},
        )
        for kind, what in {
            "spelled": "special tokens spelled in queries, documents, thoughts and histories",
            "orders": "orders in the passages that a second round of thoughts reads",
            "models": "pickles, code, links and nonsense in folders of models",
            "files": "files of a million columns, of a hundred thousand levels, of one endless line",
        }.items()
    ),
    (
        "upgrade",
        "indexes and caches that earlier versions wrote",
        {"upgrade/wrong": "not opened, or not as they were"},
        {"upgrade/opened": "stores"},
    ),
    *(
        (
            "mutants",
            f"small faults put into {what}",
            {f"mutants/{name}/unexplained": "that no test notices and nobody explains"},
            {f"mutants/{name}/tried": "faults tried", f"mutants/{name}/of": "there are"},
        )
        for name, what in {
            "template": "the layouts of prompts",
            "pooling": "the mean of vectors",
            "cache_keys": "the cache's keys and rows",
            "guard": "the guard",
            "losses": "the losses of the training",
            "vote": "the vote of the committee",
            "filters": "filters by metadata",
        }.items()
    ),
    (
        "serve",
        "mixed requests of 64 clients: every vector and ranking against the library's",
        {"serve/10000_mixed/lost_or_wrong": "lost or wrong"},
        {"serve/10000_mixed/requests": "requests"},
    ),
    (
        "serve",
        "requests at four times the pace that a server can keep",
        {
            "serve/overload/other_answers": "answers besides 200 and 429",
            "serve/overload/memory_growth_mb": "MB of memory gained",
            "serve/overload/pace_kept": "of the pace kept",
            "serve/overload/back_s": "seconds until it answers afterwards",
        },
        {"serve/overload/seconds": "seconds"},
    ),
    (
        "serve",
        "`kill -9` to a server under load, and to a process that adds to its index",
        {
            "serve/kills/acknowledged_lost": "acknowledged writes lost",
            "serve/kills/not_clean": "times something did not open cleanly",
        },
        {"serve/kills/kills": "kills", "serve/kills/acknowledged": "acknowledged writes"},
    ),
    (
        "serve",
        "requests that schemathesis makes of the server's description, valid and not",
        {"serve/schema/internal_errors": "internal errors"},
        {"serve/schema/cases": "requests"},
    ),
    (
        "soak",
        "a server at half of what it can do",
        {
            "soak/slope_share_per_hour": "of its memory gained an hour",
            "soak/slope_share_per_hour/low": "at the least",
            "soak/slope_share_per_hour/high": "at the most (95 %)",
            "soak/handles_leaked": "handles leaked",
            "soak/lost": "requests lost",
        },
        {"soak/minutes": "minutes", "soak/requests": "requests"},
    ),
)


def reliability_table(rows: Rows) -> str:
    """A line for each row that was measured; a star stands for all parts, which are added up."""
    values = {str(row["name"]).removeprefix("reliability/"): float(str(row["value"])) for row in rows}
    body = [
        [what, f"`{command}`", _said(values, often), _said(values, bad)]
        for command, what, bad, often in _LINES
        if _said(values, bad)
    ]
    return markdown_table(["what happens", "command", "how often", "figures"], body, texts=(0, 1, 2, 3))


def _said(values: Mapping[str, float], names: Mapping[str, str]) -> str:
    found = {words: fnmatch.filter(values, name) for name, words in names.items()}
    return ", ".join(
        f"{_number(sum(values[name] for name in parts))} {words}" for words, parts in found.items() if parts
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"
