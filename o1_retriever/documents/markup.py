"""Marked-up text: Markdown, reStructuredText and others are kept as written and cut at their headings.

XML, by itself and within archives, is parsed by lxml: nothing is fetched, and entities cannot grow.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from o1_retriever.documents.source import Source
from o1_retriever.documents.structure import Block, Section, Value, as_metadata, sections, valid
from o1_retriever.errors import require

_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1*[ \t]*$")
_LINE_HEADINGS = {
    ".adoc": re.compile(r"(?P<level>={1,6})[ \t]+(?P<title>\S.*)$"),
    ".asciidoc": re.compile(r"(?P<level>={1,6})[ \t]+(?P<title>\S.*)$"),
    ".org": re.compile(r"(?P<level>\*{1,8})[ \t]+(?P<title>\S.*)$"),
    ".tex": re.compile(
        r"[ \t]*\\(?P<name>part|chapter|section|subsection|subsubsection|paragraph)\*?(?:\[[^\]]*\])?"
        r"\{(?P<title>[^{}]*(?:\{[^{}]*\}[^{}]*)*)\}"
    ),
}
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_LONGEST_TITLE = 1000  # characters: looking for pairs of marks takes time that grows with the square
_LONGEST_FRONT = 60_000
_MOST_FIELDS = 10_000  # of a file about itself
_TEX = ("part", "chapter", "section", "subsection", "subsubsection", "paragraph")


@dataclass(frozen=True, slots=True)
class _Heading:
    """Lines `first` to before `last` are a heading."""

    first: int
    last: int
    level: int
    title: str


def read_markdown(source: Source) -> Iterator[Section]:
    """The sections of a Markdown file; what stands before it as YAML or TOML is metadata."""
    text = source.text()
    fields, rest, problem = front_matter(text)
    if problem:
        source.note(problem)
    yield from sections(markdown_blocks(rest), metadata=titled(fields))


def titled(fields: dict[str, Any]) -> dict[str, Value]:
    """The fields of a file as metadata, where its own `title` titles all of it."""
    title = fields.get("title")
    rest = as_metadata({name: value for name, value in fields.items() if name != "title"})
    return {"title": " ".join(str(title).split()), **rest} if isinstance(title, str | int | float) else rest


def front_matter(text: str) -> tuple[dict[str, Any], str, str]:
    """The fields before a text, the text behind them, and what is wrong with them."""
    fence = text[:3]
    if fence not in ("---", "+++") or text[3:].split("\n", 1)[0].strip():
        return {}, text, ""
    ends = re.compile(r"^(?:---|\.\.\.)[ \t]*$" if fence == "---" else r"^\+\+\+[ \t]*$", re.MULTILINE)
    end = ends.search(text, 4)
    if end is None:
        return {}, text, ""
    inside = text[3 : end.start()]
    if len(inside) > _LONGEST_FRONT:
        return (
            {},
            text,
            f"its front matter is longer than {_LONGEST_FRONT:,} characters and was read as text.",
        )
    try:
        fields = _yaml(inside) if fence == "---" else tomllib.loads(inside)
    except (ValueError, RecursionError) as error:
        return {}, text, f"its front matter was read as text ({' '.join(str(error).split()):.80})."
    if not isinstance(fields, dict):  # two rules of Markdown with text between
        return {}, text, ""
    return fields, text[end.end() :], ""


def _yaml(text: str) -> Any:
    import yaml

    try:
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise ValueError(str(error)) from error
    waiting, count = [fields], 0
    while waiting:  # names for parts let a few lines stand for millions
        value = waiting.pop()
        count += 1
        if count > _MOST_FIELDS:
            raise ValueError(f"it expands to more than {_MOST_FIELDS:,} values")
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
    return fields


@lru_cache(maxsize=1)
def _parser() -> Any:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark")
    # Only where blocks begin and end is asked for.
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


def markdown_blocks(text: str) -> Iterator[Block]:
    """Headings as CommonMark has them, and the lines between as they are written, but for comments."""
    tokens = _parser().parse(text)
    bare = _without_comments(text, tokens)
    if bare != text:
        tokens = _parser().parse(bare)
    lines = bare.split("\n")
    headings = [
        _Heading(token.map[0], token.map[1], int(token.tag[1]), _plain(tokens[place + 1].content))
        for place, token in enumerate(tokens)
        if token.type == "heading_open" and token.level == 0 and token.map
    ]
    yield from _blocks(lines, headings)


def _without_comments(text: str, tokens: Sequence[Any]) -> str:
    """A text without the comments that stand between its blocks, each with the blank line behind it."""
    lines = text.split("\n")
    for token in reversed(tokens):
        if token.type == "html_block" and token.map and "<!--" in token.content:
            first, last = token.map
            left = _COMMENT.sub("", "\n".join(lines[first:last])).strip("\n")
            blank = not left and last < len(lines) and not lines[last].strip()
            lines[first : last + blank] = [left] if left else []
    return "\n".join(lines)


def _plain(title: str) -> str:
    """A title without the marks of links, images, code and emphasis; a line of a book's length as it is."""
    if len(title) > _LONGEST_TITLE:
        return " ".join(title.split())
    title = re.sub(r"!?\[([^\[\]]*)\]\([^()\s]*\)", r"\1", title)
    return " ".join(re.sub(r"(\*\*|__|`|\*)(\S(?:.*?\S)?)\1", r"\2", title).split())


def read_rst(source: Source) -> Iterator[Section]:
    """The sections of a reStructuredText file: titles are underlined, levels follow from their order."""
    lines = source.text().split("\n")
    yield from sections(_blocks(lines, list(_rst_headings(lines))))


def _rst_headings(lines: list[str]) -> Iterator[_Heading]:
    styles: list[str] = []
    number = 0
    while number < len(lines):
        found = _rst_heading(lines, number)
        if found is None:
            number += 1
            continue
        style, first, last, title = found
        if style not in styles:
            styles.append(style)
        yield _Heading(first, last, styles.index(style) + 1, title)
        number = last


def _rst_heading(lines: list[str], number: int) -> tuple[str, int, int, str] | None:
    """The style, first line, end and title of a heading that begins at a line."""
    first, second, third = (lines[place] if place < len(lines) else "" for place in range(number, number + 3))
    if not first.strip() or (number and lines[number - 1].strip()):
        return None
    above, below = _ADORNMENT.match(first), _ADORNMENT.match(third)
    if (
        above
        and below
        and above[1] == below[1]
        and len(second.strip()) <= len(first.rstrip())
        and second.strip()
    ):
        return f"{above[1]}{above[1]}", number, number + 3, second.strip()
    under = _ADORNMENT.match(second)
    title, length = first.rstrip(), len(second.rstrip())
    if (
        under
        and not above
        and not first[0].isspace()
        and (length == len(title) or length >= max(3, len(title)))
    ):
        return under[1], number, number + 2, title
    return None


def read_line_headings(source: Source) -> Iterator[Section]:
    """The sections of a format whose headings are lines of their own: AsciiDoc, Org, LaTeX."""
    pattern = _LINE_HEADINGS[source.kind]
    lines = source.text().split("\n")
    headings = []
    for number, line in enumerate(lines):
        if found := pattern.match(line):
            parts = found.groupdict()
            level = _TEX.index(parts["name"]) if "name" in parts else len(parts["level"])
            headings.append(_Heading(number, number + 1, level + ("name" in parts), parts["title"].strip()))
    yield from sections(_blocks(lines, headings))


def _blocks(lines: list[str], headings: list[_Heading]) -> Iterator[Block]:
    position = 0
    for heading in headings:
        yield from _body(lines[position : heading.first])
        text = "\n".join(lines[heading.first : heading.last])
        yield Block(text=text, level=heading.level, title=heading.title)
        position = heading.last
    yield from _body(lines[position:])


def _body(lines: list[str]) -> Iterator[Block]:
    text = "\n".join(lines)
    if text.strip():
        yield Block(text=text)


_TITLES = {"title", "head", "heading"}
_ATTRIBUTES = 1000
_WORDS = 60  # characters: what is longer is a paragraph, not a word within one


def parse(data: bytes, source: Source, *, what: str = "it") -> Any:
    """The root of a document, as much as can be read of a damaged one. Raises `DocumentError` for none."""
    etree = require("lxml.etree", extra="documents", purpose="Reading XML")
    # libxml2 itself bounds how far entities may expand and how deep elements may be nested.
    safe = {"no_network": True, "load_dtd": False, "huge_tree": False, "resolve_entities": "internal"}
    try:
        return etree.fromstring(data, etree.XMLParser(**safe))
    except (etree.XMLSyntaxError, ValueError) as error:
        reason = " ".join(str(error).split())
        if ("entity" in reason.lower() and "amplification" in reason.lower()) or "loop" in reason.lower():
            raise source.error(
                f"{what} has entities that expand without bound; expected plain XML."
            ) from None
        root = etree.fromstring(data, etree.XMLParser(**safe, recover=True))
        if root is None:
            raise source.error(f"{what} is not XML ({reason:.80}); expected XML.") from None
        source.note(f"{what} is not intact XML ({reason:.80}); what could be read was read.")
        return root


def name_of(element: Any) -> str:
    """The name of an element without its namespace; empty for comments and instructions."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def attribute(element: Any, name: str) -> str:
    """The value of an attribute, in whatever namespace; empty without one."""
    return next((element.get(key) for key in element.attrib if key.rpartition("}")[2] == name), "")


def read_xml(source: Source) -> Iterator[Section]:
    """The text of an XML file: elements with text are blocks, those called title are headings."""
    data = source.data()
    if data.strip():
        yield from sections(xml_blocks(parse(data, source), source))


def xml_blocks(root: Any, source: Source) -> Iterator[Block]:
    """The blocks below an element, in order."""
    waiting = [(root, 1)]
    while waiting:
        element, depth = waiting.pop()
        name = name_of(element)
        if not name:
            continue
        children = [child for child in element if name_of(child)]
        mixed = bool((element.text or "").strip()) or any((child.tail or "").strip() for child in element)
        if mixed or not children:
            text = " ".join(valid("".join(_texts(element))).split())
            if not text and element.attrib:
                # Looking for each takes time that grows with their number.
                names = [*element.attrib][:_ATTRIBUTES]
                text = ", ".join(f"{key.rpartition('}')[2]}: {element.get(key)}" for key in names)
                if len(element.attrib) > _ATTRIBUTES:
                    source.note(f"elements with more than {_ATTRIBUTES:,} attributes were cut.")
            if text:
                titles = name.lower() in _TITLES
                yield Block(
                    text=text, level=max(1, depth - 1) if titles else None, title=text if titles else ""
                )
        else:
            waiting += [(child, depth + 1) for child in reversed(children)]


def _texts(element: Any) -> Iterator[str]:
    """The texts in an element in order; what is long or has parts of its own stands apart."""
    yield element.text or ""
    for child in element:
        if name_of(child):
            text = "".join(_texts(child))
            apart = len(text) > _WORDS or any(name_of(inner) for inner in child)
            yield f" {text} " if apart else text
        yield child.tail or ""
