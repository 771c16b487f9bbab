"""PDF files, read by PDFium: pages as a person reads them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from o1_retriever.documents.source import Source
from o1_retriever.documents.structure import Section, Value, valid
from o1_retriever.errors import require
from o1_retriever.reporting import counted

# PDFium puts a sign of its own for a hyphen at the end of a line, and no end of the line.
_HYPHENATED = re.compile(r"([\w-]*[^\W\d_])(?:[\x02\ufffe]\n?|-\n)(?=([a-zß-öø-ÿ])?)")
_PAGE_NUMBER = re.compile(
    r"(?i)[\W_]*(?:page|seite|p\.)?[\W_]*(\d{1,5})[\W_]*(?:(?:of|von|de|/)[\W_]*\d{1,5})?[\W_]*"
)
_NO_TITLE = re.compile(
    r"(?i)untitled.*|microsoft (?:word|powerpoint|excel) - .*|powerpoint presentation|"
    r"(?:document|presentation|book|layout|slide) ?\d+|\S+\.(?:docx?|pptx?|xlsx?|tex|dvi|pdf|indd|qxd)"
)
_EDGE = 2  # lines at the top and at the bottom that may be the same on every page
_REPEATED = 3  # pages on which a line has to stand to be a header or a footer
_PAGES = 20_000
_RECTANGLES = 5000  # pieces of text of a page whose places are looked at


def read_pdf(source: Source) -> Iterator[Section]:
    """A section for each page with text. Pages without are noted; a file without any is an error."""
    pdfium = require("pypdfium2", extra="documents", purpose="Reading PDF files")
    data = source.data()
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        raise _refused(source, error) from error
    try:
        title = str(document.get_metadata_value("Title") or "").strip()
        pages = [_page_text(document, number, source) for number in range(min(len(document), _PAGES))]
        if len(document) > _PAGES:
            source.note(f"it has {len(document):,} pages, of which {_PAGES:,} were read.")
    finally:
        document.close()
    yield from _sections(source, _without_repeats(pages), _useful(title))


def _sections(source: Source, pages: Sequence[str], title: str) -> Iterator[Section]:
    named: dict[str, Value] = {"title": title} if title else {}
    empty = [number for number, text in enumerate(pages, start=1) if not text.strip()]
    if len(empty) == len(pages):
        raise source.error(
            f"it has {counted(len(pages), 'page')} and no text (images only?); expected "
            "a PDF with a text layer.",
            hint="Type: ocrmypdf OLD NEW",
        )
    if empty:
        shown = ", ".join(map(str, empty[:10])) + (" and others" if len(empty) > 10 else "")
        source.note(f"no text on {'page' if len(empty) == 1 else 'pages'} {shown} (images only?).")
    for number, text in enumerate(pages, start=1):
        if text.strip():
            yield Section(text=text, metadata={"page": number, **named})


def _refused(source: Source, error: Exception) -> Exception:
    if "password" in str(error).lower():
        return source.error(
            "it is encrypted; expected a PDF that opens without a password.",
            hint="Type: qpdf --decrypt --password=... OLD NEW",
        )
    return source.error(f"it cannot be read as PDF ({error!s:.120}); expected an intact PDF.")


def _useful(title: str) -> str:
    """The title that somebody gave; programs put the name of a file there."""
    return "" if _NO_TITLE.fullmatch(title) else valid(title)


def _page_text(document: Any, number: int, source: Source) -> str:
    try:
        page = document[number]
        try:
            text_page = page.get_textpage()
            try:
                middle = _gutter(text_page, page.get_width())
                text = text_page.get_text_range() if middle is None else _in_columns(text_page, middle)
            finally:
                text_page.close()
        finally:
            page.close()
    except Exception as error:  # a page of a damaged file may fail in any way; the others are still read
        source.note(f"page {number + 1} cannot be read ({error!s:.80}).")
        return ""
    return _HYPHENATED.sub(_joined, valid(text)).replace("\ufffe", "-").replace("\x02", "-")


def _joined(broken: re.Match[str]) -> str:
    """A word whose end stands on the next line; a hyphen that belongs to it is kept."""
    if broken[2] is None:
        return broken[0]
    return f"{broken[1]}-" if "-" in broken[1] else broken[1]


def _in_columns(text_page: Any, middle: float) -> str:
    """The text of a page of two columns: between the lines over both of them, left before right."""
    from pypdfium2 import raw

    boxes = [text_page.get_rect(place) for place in range(text_page.count_rects())]
    # Lines over both columns cut the page into bands, which are read from top to bottom.
    levels = sorted({(box[1] + box[3]) / 2 for box in boxes if box[0] < middle < box[2]}, reverse=True)
    heights = [level + shift for level in levels for shift in (3, -3)]
    parts: dict[tuple[int, int], list[str]] = {}
    key = last = (0, 0)
    for place in range(text_page.count_chars()):
        char = chr(raw.FPDFText_GetUnicode(text_page, place))
        left, bottom, right, top = text_page.get_charbox(place)
        if right > left:  # what PDFium adds, such as the end of a line, has no place
            band = sum((bottom + top) / 2 < height for height in heights)
            key = (band, 0 if band % 2 else int((left + right) / 2 > middle))
        if key != last and parts.get(key):
            parts[key].append("\n")
        parts.setdefault(key, []).append(char)
        last = key
    columns = ("".join(parts[key]).split("\n") for key in sorted(parts))
    return "\n".join(line.strip() for column in columns for line in column if line.strip())


def _gutter(text_page: Any, width: float) -> float | None:
    """Where a column ends and the next begins: hardly a line crosses it, and many stand on either side."""
    count = text_page.count_rects()
    if not 8 <= count <= _RECTANGLES:
        return None
    boxes = [text_page.get_rect(place) for place in range(count)]
    wide = [(left, right) for left, _, right, _ in boxes if right - left > width / 8]
    best: tuple[int, float] | None = None
    for share in range(35, 66):
        position = width * share / 100
        crossing = sum(left < position < right for left, right in wide)
        before = sum(right <= position for _, right in wide)
        after = sum(left >= position for left, _ in wide)
        if min(before, after) >= 4 and crossing <= len(wide) / 8 and (best is None or crossing < best[0]):
            best = crossing, position
    return best[1] if best else None


def _without_repeats(pages: Sequence[str]) -> list[str]:
    """Headers and footers are kept where they stand first; numbers of pages are left out."""
    edges = [_edges(text.split("\n"), number) for number, text in enumerate(pages)]
    counts = Counter(shape for edge in edges for shape in {shape for _, shape in edge})
    repeated = {shape for shape, count in counts.items() if count >= max(_REPEATED, len(pages) / 2)}
    seen: set[str | int] = set()
    kept = []
    for text, edge in zip(pages, edges, strict=True):
        dropped = {
            place for place, shape in edge if shape in repeated and (shape in seen or isinstance(shape, int))
        }
        seen |= {shape for _, shape in edge}
        kept.append("\n".join(line for place, line in enumerate(text.split("\n")) if place not in dropped))
    return kept


def _edges(lines: Sequence[str], number: int) -> list[tuple[int, str | int]]:
    """The first and last lines with text as they stand; a page's number by how much it is another one."""
    places = [place for place, line in enumerate(lines) if line.strip()]
    found: list[tuple[int, str | int]] = []
    for place in dict.fromkeys([*places[:_EDGE], *places[-_EDGE:]]):
        line = lines[place].strip()
        counted = _PAGE_NUMBER.fullmatch(line)
        found.append((place, int(counted[1]) - number if counted else line))
    return found
