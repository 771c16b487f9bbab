"""Whether thinking helps on a collection, and whether it is what the thoughts say that helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.evaluation.collection import Collection, EncodedCorpus
from o1_retriever.evaluation.comparison import SIGNIFICANT, Comparison, Values, compare, evaluate, holm
from o1_retriever.evaluation.controls import FAST, PAIRS, thinking_systems
from o1_retriever.evaluation.metrics import aligned
from o1_retriever.reporting import counted, markdown_table

MEASURE = "nDCG@10"
_DEPTH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the thinker is worth on the questions that were kept apart.

    `means` is the measure of every system; `own` compares each system of `PAIRS` with the same without
    thoughts, and `control` with the one that has the thoughts about another question. `fast` compares the
    corrected vector of the query alone, which costs no thought, with the encoder's own.
    """

    queries: int
    means: dict[str, float]
    own: dict[str, Comparison]
    control: dict[str, Comparison]
    fast: Comparison | None = None

    @property
    def helped(self) -> list[str]:
        """The systems that gain by what the thoughts say, beyond chance."""
        return [
            name
            for name, found in self.own.items()
            if found.p_corrected < SIGNIFICANT and found.difference > 0 and self.control[name].difference > 0
        ]

    @property
    def harmed(self) -> list[str]:
        """The systems that lose by thinking, beyond chance."""
        own = self.own.items()
        return [name for name, found in own if found.p_corrected < SIGNIFICANT and found.difference < 0]

    @property
    def is_good(self) -> bool:
        """Whether the thinker is to be installed."""
        return bool(self.helped) and not self.harmed

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The heads of the verdict's table, and its rows."""
        heads = ["system", f"{MEASURE} without", "with thoughts", "gain", "95 %", "p", "another's thoughts"]
        rows = []
        for name, found in self.own.items():
            with_own, with_others = PAIRS[name]
            interval = f"{found.low:+.3f} to {found.high:+.3f}"
            figures = [f"{self.means[name]:.3f}", f"{self.means[with_own]:.3f}", f"{found.difference:+.3f}"]
            rows.append(
                [name, *figures, interval, f"{found.p_corrected:.3f}", f"{self.means[with_others]:.3f}"]
            )
        if self.fast is not None:
            interval = f"{self.fast.low:+.3f} to {self.fast.high:+.3f}"
            figures = [f"{self.means[FAST]:.3f}", f"{self.fast.difference:+.3f}"]
            rows.append(
                [
                    "fast, no thought",
                    f"{self.means['dense']:.3f}",
                    *figures,
                    interval,
                    f"{self.fast.p:.3f}",
                    "",
                ]
            )
        return heads, rows

    def table(self) -> str:
        """The verdict as a Markdown table."""
        return markdown_table(*self.rows())

    def sentence(self) -> str:
        """What it comes to."""
        on = f"on {counted(self.queries, 'question')} that it never saw"
        if self.is_good:
            gains = ", ".join(f"{name} {self.own[name].difference:+.3f}" for name in self.helped)
            return f"It helped {on}: {MEASURE} of {gains}."
        if self.harmed:
            return f"It did harm {on}, to {', '.join(self.harmed)}: nothing is installed."
        return f"It did not help {on}, beyond what chance explains: nothing is installed."


def judge(embedder: ThinkingEmbedder, collection: Collection, encoded: EncodedCorpus) -> Verdict:
    """What an embedder's thoughts gain on a collection, and what those about another question would."""
    systems = thinking_systems(embedder, list(collection.queries.values()), collection.corpus, encoded)
    found = evaluate(collection, systems, measures=[MEASURE], depth=_DEPTH)
    queries = list(collection.qrels)
    values = {each.name: aligned(each.values[MEASURE], queries) for each in found.results}
    return Verdict(
        queries=len(queries),
        means={each.name: each.means[MEASURE] for each in found.results},
        own=_compared(values, others=False),
        control=_compared(values, others=True),
        fast=compare(values["dense"], {FAST: values[FAST]})[FAST] if FAST in values else None,
    )


def _compared(values: Mapping[str, Values], *, others: bool) -> dict[str, Comparison]:
    """Each system with thoughts against the same without, or with the thoughts about another question."""
    raw = {}
    for name, (own, another) in PAIRS.items():
        before = values[another if others else name]
        raw[name] = compare(before, {name: values[own]})[name]
    corrected = holm([each.p for each in raw.values()])
    return {
        name: replace(each, p_corrected=p) for (name, each), p in zip(raw.items(), corrected, strict=True)
    }
