"""Cutting a text into passages: paragraphs stay together while they fit, long ones break at sentence ends."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from o1_retriever.documents.structure import BELOW
from o1_retriever.errors import SettingsError
from o1_retriever.vectors import TokenLimit

Span = tuple[int, int]
_FEWEST = 20  # characters of a passage
_MARGIN = 0.9  # tokens are not spread evenly over a text

# Places where a long piece of prose or code may be broken, best first. Each pattern matches the white space
# between two parts and starts at a fixed kind of character, so that it is linear on any input.
_SENTENCE = re.compile(
    r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’»)\]]))\s+(?!\s|[a-z])|(?<=[。！？])\s*(?=[^\s。！？])"
)
_LINE = re.compile(r"\n+")
_PROSE_LINE = re.compile(r"\n\s*")
_WORD = re.compile(r"\s+")
_PROSE = (_SENTENCE, _PROSE_LINE, _WORD)
_CODE = (_LINE, _WORD)
# Lines that are not blank; the group is the white space before the first of them.
_PARAGRAPH = re.compile(r"^([^\S\n]*+)\S.*(?:\n[^\S\n]*+\S.*)*+", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """How long passages may be, and how much of a passage's end the next one repeats, in characters.

    The default of 800 characters is about 130 English words: what small encoders read whole. With `tokens`,
    a passage that an encoder would not read to its end is cut further. With `context`, a passage begins with
    those headings above it that it does not say itself (what that gains: docs/documents.md). Raises
    `SettingsError` unless `max_characters` is at least 20 and `overlap` at most half of it.
    """

    max_characters: int = 800
    overlap: int = 120
    tokens: TokenLimit | None = None
    context: bool = False

    def __post_init__(self) -> None:
        for name in ("max_characters", "overlap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise SettingsError(f"{name} is {value!r}; expected a whole number of characters.")
        if self.max_characters < _FEWEST:
            raise SettingsError(f"max_characters is {self.max_characters}; expected at least {_FEWEST}.")
        if not 0 <= self.overlap <= self.max_characters // 2:
            raise SettingsError(
                f"overlap is {self.overlap}; expected at most half of max_characters, so 0 to "
                f"{self.max_characters // 2}."
            )


def split_passages(
    text: str, *, max_characters: int = 800, overlap: int = 120, code: bool = False
) -> list[str]:
    """Cut `text` into passages of at most `max_characters`; each may begin with the end of the one before.

    Nothing is lost or reordered except white space at the edges. `code=True` breaks at lines instead of
    sentences and keeps the indentation. A text of white space alone gives no passage.
    """
    chunking = Chunking(max_characters=max_characters, overlap=overlap)
    return [text[start:end] for start, end in passage_spans(text, chunking, code=code)]


def passage_spans(text: str, chunking: Chunking, *, code: bool = False) -> list[Span]:
    """Where the passages of `text` begin and end."""
    spans: list[Span] = []
    for start, end in _pieces(text, chunking.max_characters, code=code):
        if spans and end - spans[-1][0] <= chunking.max_characters:
            spans[-1] = spans[-1][0], end
            continue
        if spans:
            room = min(chunking.overlap, chunking.max_characters - (end - start))
            start = _repeat_from(text, spans[-1], start, max(start - room, spans[-1][0] + 1), code)
        spans.append((start, end))
    spans = [_trim(text, span, code) for span in spans]
    if chunking.tokens is None:
        return spans
    return list(_within(text, spans, chunking.tokens, code))


def passages(text: str, title: str, chunking: Chunking, *, code: bool = False) -> list[str]:
    """The passages of a section, under the path of its headings if asked for, within the same limits."""
    path = _fitting(title.split(BELOW), chunking.max_characters // 4) if chunking.context and title else []
    if not path:
        return [text[start:end] for start, end in passage_spans(text, chunking, code=code)]
    head = _headed(path, "")
    tokens = chunking.tokens
    if tokens is not None:
        tokens = replace(tokens, tokens=max(_FEWEST, tokens.tokens - tokens.count([head])[0]))
    room = max(_FEWEST, chunking.max_characters - len(head))
    less = replace(chunking, max_characters=room, overlap=min(chunking.overlap, room // 2), tokens=tokens)
    return [_headed(path, text[start:end]) for start, end in passage_spans(text, less, code=code)]


def _fitting(path: Sequence[str], most: int) -> list[str]:
    """As many headings as fit, the innermost ones."""
    fitting = [*path]
    while fitting and len(_headed(fitting, "")) > most:
        fitting.pop(0)
    return fitting


def _headed(path: Sequence[str], passage: str) -> str:
    """The passage under those headings of the path that it does not begin with itself."""
    begins = "\n".join(passage.split("\n", 2 * len(path))[: 2 * len(path)])
    left = [*path]
    while left and re.search(rf"(?<!\w){re.escape(left[-1])}(?!\w)", begins):
        left.pop()
    return f"{BELOW.join(left)}\n\n{passage}" if left else passage


def _within(text: str, spans: list[Span], limit: TokenLimit, code: bool) -> Iterator[Span]:
    """The spans, those cut further that have too many tokens. A token stands for one byte at least."""
    doubtful = [span for span in spans if len(text[slice(*span)].encode()) > limit.tokens]
    counts = dict(zip(doubtful, limit.count([text[slice(*span)] for span in doubtful]), strict=True))
    for span in spans:
        start, end = span
        count = counts.get(span, 0)
        fewer = max(_FEWEST, int((end - start) * limit.tokens / max(1, count) * _MARGIN))
        if count <= limit.tokens or fewer >= end - start:
            yield span
        else:
            inner = passage_spans(text[start:end], Chunking(max_characters=fewer, overlap=0), code=code)
            yield from _within(text, [(start + first, start + last) for first, last in inner], limit, code)


def _trim(text: str, span: Span, code: bool) -> Span:
    """The span without white space at its edges; indentation is a part of code."""
    start, end = span
    while text[end - 1].isspace():
        end -= 1
    while text[start].isspace() and not (code and text[start] in " \t"):
        start += 1
    return start, end


def _repeat_from(text: str, previous: Span, following: int, earliest: int, code: bool) -> int:
    """Where the passage of the piece at `following` begins when it repeats the end of the previous one."""
    end = previous[1]
    if earliest >= end:
        return following
    window = max(earliest - 1, previous[0])
    for pattern in (_LINE,) if code else (_SENTENCE, _PROSE_LINE, _WORD):
        for match in pattern.finditer(text, window, end):
            if earliest <= match.end() < end:
                return match.end()
    return following


def _pieces(text: str, limit: int, *, code: bool) -> Iterator[Span]:
    """Whole paragraphs where they fit, parts of paragraphs where they do not; code keeps its indentation."""
    for paragraph in _PARAGRAPH.finditer(text):
        start = paragraph.start() if code else paragraph.end(1)
        end = paragraph.start() + len(paragraph[0].rstrip())
        yield from _break(text, start, end, limit, _CODE if code else _PROSE)


def _break(
    text: str, start: int, end: int, limit: int, patterns: tuple[re.Pattern[str], ...]
) -> Iterator[Span]:
    """Parts of `text[start:end]` of at most `limit`, broken at the best kind of place that will do."""
    if end - start <= limit:
        yield start, end
    elif not patterns:
        for position in range(start, end, limit):
            yield position, min(position + limit, end)
    else:
        for match in patterns[0].finditer(text, start, end):
            if match.start() > start:
                yield from _break(text, start, match.start(), limit, patterns[1:])
            start = match.end()
        if start < end:
            yield from _break(text, start, end, limit, patterns[1:])
