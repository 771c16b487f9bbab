"""What keeps thoughts from doing harm: when not to think at all, and which thoughts are left out, and why.

A thought is judged by its text alone (`why_not`), and, where there is a large index, by how near it is to
the query beside passages drawn from it at random (`off_subject`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from o1_retriever.endpoint.chat import DEFAULT_PROMPT, SENTENCE_END, refused
from o1_retriever.errors import SettingsError
from o1_retriever.reporting import counted
from o1_retriever.thought import Thought, Vector

# Best scores of the fast ranking that are looked at, and the least number that says anything.
LOOKED_AT = 100
ENOUGH = 10
_RIDGE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a query was to be thought about, and why.

    `worth` is what the gate expects of thinking and `threshold` the least that is enough. Both are
    None where no gate was.
    """

    think: bool
    reason: str
    worth: float | None = None
    threshold: float | None = None

    def to_dict(self) -> dict[str, bool | str | float | None]:
        """The decision as plain JSON values."""
        return asdict(self)


def features(scores: Sequence[float] | Vector) -> NDArray[np.float64]:
    """What a ranking's best scores, best first, say about it: `drop`, `step`, `peak`, `entropy`.

    None of them changes when an encoder's scores are stretched; `peak` and `entropy` do not when they are
    shifted either. `drop` is the share of the first score that is lost down to the tenth, `step` the part of
    that loss that lies after the first, `peak` the first score in standard deviations above the mean, and
    `entropy` that of the scores' softmax in those units, from 0 to 1.
    """
    best = np.asarray(scores, dtype=np.float64)[:LOOKED_AT]
    spread = max(float(best.std()), 1e-9)
    standard = (best - best.mean()) / spread
    shares = np.exp(standard - standard[0])
    shares /= shares.sum()
    tenth = best[min(9, len(best) - 1)]
    lost = max(float(best[0] - tenth), 1e-9)
    return np.array(
        [
            float(best[0] - tenth) / max(abs(float(best[0])), 1e-9),
            float(best[min(1, len(best) - 1)] - tenth) / lost,
            float(standard[0]),
            float(-(shares * np.log(shares)).sum() / np.log(max(2, len(best)))),
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Thinks about a query where the gain in nDCG@10 that its fast ranking promises reaches `threshold`.

    The promise is `bias` plus the `weights` times `features`. The defaults were calibrated with recorded
    thoughts and all-MiniLM-L6-v2 on dev and train splits (`python -m benchmarks.retrieval.adaptive`), at the
    threshold where 95 % of the gain is kept. `calibrate` makes a gate for another encoder or thinker.
    """

    weights: tuple[float, float, float, float] = (-0.3942, -0.0290, -0.0260, -0.2357)
    bias: float = 0.5167
    threshold: float = 0.0597

    def worth(self, scores: Sequence[float] | Vector) -> float:
        """The gain in nDCG@10 that thinking promises after these best scores of the fast ranking."""
        return self.bias + float(np.dot(self.weights, features(scores)))

    def decide(self, scores: Sequence[float] | Vector) -> Decision:
        """Think or not; always where the ranking has fewer than ten documents and says little."""
        if len(scores) < ENOUGH:
            few = f"the fast ranking has only {counted(len(scores), 'document')}"
            return Decision(think=True, reason=few, threshold=self.threshold)
        worth = self.worth(scores)
        think = worth >= self.threshold
        reason = f"the fast ranking {'leaves room' if think else 'is clear'}"
        return Decision(think=think, reason=reason, worth=worth, threshold=self.threshold)


def calibrate(
    rankings: Sequence[Sequence[float] | Vector], gains: Sequence[float], *, keep: float = 0.95
) -> Gate:
    """A gate from queries whose gain by thinking is known; never calibrate on the queries you report on.

    `rankings` are the best scores (100, best first) of each query without thoughts, `gains` what thinking
    added to the measure of each. The threshold is the highest that keeps the share `keep` of all the gain.
    """
    if len(rankings) != len(gains) or len(gains) < ENOUGH:
        raise SettingsError(
            f"Found {counted(len(rankings), 'ranking')} and {counted(len(gains), 'gain')}; "
            f"expected as many of both, from {ENOUGH}."
        )
    if not 0 < keep <= 1:
        raise SettingsError(f"keep is {keep!r}; expected a share above 0, up to 1.")
    described = np.stack([features(scores) for scores in rankings])
    known = np.asarray(gains, dtype=np.float64)
    centre, scale = described.mean(axis=0), np.maximum(described.std(axis=0), 1e-9)
    standard = (described - centre) / scale
    square = standard.T @ standard + _RIDGE * np.eye(standard.shape[1])
    weights = np.linalg.solve(square, standard.T @ (known - known.mean())) / scale
    drop, step, peak, entropy = (float(weight) for weight in weights)
    bias = float(known.mean() - weights @ centre)
    gate = Gate(weights=(drop, step, peak, entropy), bias=bias)
    worths = np.array([gate.worth(scores) for scores in rankings])
    order = np.argsort(-worths, kind="stable")
    kept = np.cumsum(known[order])
    reached = np.flatnonzero(kept >= keep * kept[-1])
    # Where thoughts harm so much that no threshold keeps anything, none of them is wanted.
    return replace(gate, threshold=float(worths[order[reached[0]]]) if len(reached) else np.inf)


# Words that stand in every text: a thought of these alone says nothing.
_WORD = re.compile(r"\w+")
_STOP = frozenset(
    _WORD.findall(
        "a an and are as at be been but by can could did do does for from had has have he her his how i if"
        " in into is it its may no not of ok on or our she should so such than that the their then there"
        " these they this to us was we were what when where which who why will with would yes you your"
    )
)
_CUT = ("length", "budget")  # how a thought finishes that did not end by itself
_LOOPS = 4  # a piece that comes so often, one after the other, and fills half of a text, is a loop
_LEAST = 12  # words, or characters of a text of up to three words, that a loop has at the least
_FEW, _MANY = 0.25, 24  # of so many words or more, fewer different ones than this share turn in circles
_SAME = 0.9  # share of common words, of all in both, from which a thought is the query over again
_RUN = 10  # so many words of the prompt, one after the other, are no chance
_READ = 400  # words, or characters of a text of up to three words, that are looked at
# An order begins a sentence, or follows "please" or "you must", or tells which instructions, or whose. That
# somebody ignores guidelines is none. Every repetition has a bound, so that no text takes long to read.
_FORGET = r"(?:ignore|disregard|forget|override)\b"
_TOLD = r"\b(?:instructions?|prompts?|directions|guidelines)\b"
_ORDER = re.compile(
    r"(?:(?:^|[.!?:;\n])\W{0,8}(?:(?:now|then|so|also|just|first|next|instead)\W{1,3})?"
    r"|\b(?:please|you (?:must|should|to|(?:are|have|need) to))\W{1,3})"
    rf"{_FORGET}[^.!?]{{0,40}}{_TOLD}"
    rf"|\b{_FORGET}[^.!?]{{0,20}}\b(?:previous|prior|above|earlier|preceding|system)\b[^.!?]{{0,20}}{_TOLD}"
    rf"|\b(?:must|should|and|to)\W{{1,3}}{_FORGET}\W{{1,3}}(?:all|any|your)\b[^.!?]{{0,40}}{_TOLD}"
    r"|\b(?:reveal|print|repeat|output)\b[^.!?]{0,30}\bsystem prompt\b",
    re.IGNORECASE,
)
# A code has a letter and two digits in a row. A number with an ending or a unit is none (16th, 1990s, 10mg,
# 20th-century, 10-year-old), nor is a date with a word before it (mid-1990s).
_PIECE = re.compile(r"\b[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*\b")
_CODE = re.compile(
    r"(?=.*[A-Za-z])(?=.*\d\d)(?!\d+[A-Za-z]{0,3}(?:-[a-z]+)*$)(?!(?:pre|post|early|mid|late)-\d)"
)


def why_not(query: str, thought: Thought) -> str | None:
    """Why a thought is left out, told from its text and the query's alone; None where it counts.

    The reasons complete "it ...": it holds no word of its own, turns in circles, was cut inside its only
    word, is written in another script than the query, refuses, repeats the query or the prompt, gives orders
    to its reader (a prompt injection out of some document), or names another code than the query's.
    """
    if thought.failed:
        return None
    return next(_reasons(query, thought), None)


# Passages that are drawn, how many times as many an index has to hold, and the share of those drawn that may
# be nearer to the query than a thought, which was chosen on dev and train splits (docs/guard.md).
DRAWN, OF_TIMES, NEARER = 1000, 5, 0.02


def drawn(count: int, total: int) -> NDArray[np.int64]:
    """Places of `count` out of `total` passages, drawn at random (always the same ones), in ascending order.

    No places where they would be more than a fifth of all: a large part of an index is no sample of other
    subjects, for it holds what the query asks for.
    """
    if total < OF_TIMES * count:
        return np.zeros(0, np.int64)
    return np.sort(np.random.default_rng(0).permutation(total)[:count])


def off_subject(own: Vector, thoughts: Vector, passages: Vector) -> list[str | None]:
    """Why each thought is left out: it is farther from the query than the nearest of random passages.

    All are unit vectors: the query's (dimension,), those of the thoughts by themselves (k, dimension) and of
    passages that were drawn (n, dimension), both as documents. None where a thought counts, and for all where
    there are fewer than a thousand passages. A thought about another subject is nearer to a query than one
    passage in fifty only by chance; one about the query's own nearly always is. Where most are farther, the
    others are taken to be near by chance.
    """
    if len(passages) < DRAWN:
        return [None] * len(thoughts)
    nearer = round(NEARER * len(passages))
    bar = float(np.partition(passages @ own, -nearer)[-nearer])
    cosines = (thoughts @ own).tolist()
    by_chance = 2 * sum(cosine >= bar for cosine in cosines) < len(cosines)
    near = "is taken to be off the subject, as most thoughts about the query are" if by_chance else None
    far = "is off the subject: farther from the query ({:.2f}) than random passages ({:.2f})"
    return [far.format(cosine, bar) if cosine < bar else near for cosine in cosines]


def _reasons(query: str, thought: Thought) -> Iterator[str]:
    text = thought.text
    words = _words(text)
    if not set(words) - _STOP:
        yield "says nothing"
    elif thought.finish in _CUT and len(words) == 1 and not SENTENCE_END.search(text):
        yield "was cut inside its only word"
    if _loops(words if len(words) > 3 else text[:_READ]):
        yield "turns in circles"
    own, asked = _script(text), _script(query)
    if own and asked and own != asked:
        yield f"is in {own} script, and the query in {asked}"
    if refused(text):
        yield "refuses"
    if _ORDER.search(text):
        yield "gives orders"
    if _same(set(words), set(_words(query))):
        yield "repeats the query"
    if _from_prompt(query, words):
        yield "repeats the prompt"
    if wrong := _other_code(query, text):
        yield f"names {wrong[1]}, where the query has {wrong[0]}"


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())[:_READ]


def _loops(units: Sequence[str]) -> bool:
    """Whether one piece, over and over, fills half of a text given as words or characters."""
    count = len(units)
    if count < _LEAST:
        return False
    if count >= _MANY and not isinstance(units, str) and len(set(units)) < _FEW * count:
        return True
    for period in range(1, count // _LOOPS + 1):
        least = max((_LOOPS - 1) * period, count // 2 - period)
        run = 0
        for place in range(period, count):
            run = run + 1 if units[place] == units[place - period] else 0
            if run >= least:
                return True
    return False


def _script(text: str) -> str:
    """The script of most letters of a text, as Unicode names it; empty for a text with hardly any."""
    letters = Counter(_script_of(letter) for letter in text[:_READ] if letter.isalpha())
    ((script, count),) = letters.most_common(1) or [("", 0)]
    return script if count > 3 and 2 * count > letters.total() else ""


@cache
def _script_of(letter: str) -> str:
    name = unicodedata.name(letter, "?").split()[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "FULLWIDTH", "HALFWIDTH") else name


def _same(one: set[str], other: set[str]) -> bool:
    return len(one & other) >= _SAME * len(one | other)


def _runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(words[place : place + _RUN]) for place in range(len(words) - _RUN + 1)}


def _from_prompt(query: str, words: Sequence[str]) -> bool:
    """Whether a run of words is of our own instruction or examples, but for the example that is the query."""
    own, asked = _runs(words), set(_words(query))
    return any(own & runs and not _same(asked, example) for example, runs in _prompt())


@cache
def _prompt() -> list[tuple[set[str], set[tuple[str, ...]]]]:
    """The words of each question in the prompt, and the runs of the question and what is said about it."""
    parts = [("", DEFAULT_PROMPT.system or ""), *DEFAULT_PROMPT.examples]
    return [(set(_words(each)), _runs(_words(each)) | _runs(_words(said))) for each, said in parts]


def _other_code(query: str, text: str) -> tuple[str, str] | None:
    """A code of the query, such as ERR-4031, and another of the same shape that stands in its place."""
    asked, found = _codes(query), _codes(text)
    if {code.lower() for code in asked} & {code.lower() for code in found}:
        return None
    shapes = {_shape(code): code for code in found}
    return next(((code, shapes[_shape(code)]) for code in asked if _shape(code) in shapes), None)


def _codes(text: str) -> list[str]:
    """What in a text is a code, in order and each once."""
    return [piece for piece in dict.fromkeys(_PIECE.findall(text)) if _CODE.match(piece)]


def _shape(code: str) -> str:
    """A code with its digits made alike: ERR-4031 and ERR-4013 are of one shape."""
    return re.sub(r"\d", "0", code.lower())
