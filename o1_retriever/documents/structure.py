"""The parts of a file: what stands under one heading, or one function of a program."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a file that is cut into passages on its own. `code` says that lines matter, not sentences."""

    text: str
    metadata: dict[str, Scalar] = field(default_factory=dict)
    code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A heading (`level` 1 to 6, with its `title`) or other text (`level` 0), in the order of the file."""

    text: str
    level: int = 0
    title: str = ""


_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*))?$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_DEFINITION = re.compile(r"(?:async[ \t]+def|def|class)[ \t]+(\w+)")


def sections(blocks: Iterable[Block], *, joint: str = "\n") -> Iterator[Section]:
    """Join each heading with what follows it. The title is the path of headings, outermost first."""
    path: list[tuple[int, str]] = []
    texts: list[str] = []
    has_body = False
    for block in blocks:
        if block.level:
            if has_body:
                yield _section(path, texts, joint)
                texts, has_body = [], False
            path = [step for step in path if step[0] < block.level]
            if block.title:
                path.append((block.level, block.title))
        has_body = has_body or (not block.level and bool(block.text.strip()))
        texts.append(block.text)
    if any(text.strip() for text in texts):
        yield _section(path, texts, joint)


def _section(path: list[tuple[int, str]], texts: list[str], joint: str) -> Section:
    title = " > ".join(title for _, title in path)
    return Section(text=joint.join(texts), metadata={"title": title} if title else {})


def markdown_blocks(text: str) -> Iterator[Block]:
    """Headings of both kinds (`# Title`, or a line underlined with === or ---) and the lines between."""
    lines = text.split("\n")
    start = _after_front_matter(lines)
    body: list[str] = lines[:start]
    fence = ""
    for number in range(start, len(lines)):
        line = lines[number]
        marker = _FENCE.match(line)
        if fence:
            if marker and marker[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif marker:
            fence = marker[1]
        elif heading := _ATX.match(line):
            yield from _body(body)
            body = []
            title = re.sub(r"(?:^|(?<=\s))#+$", "", (heading[2] or "").strip()).strip()
            yield Block(text=line, level=len(heading[1]), title=title)
            continue
        elif len(body) and _is_underlined(body, line):
            title = body.pop()
            yield from _body(body)
            body = []
            yield Block(text=f"{title}\n{line}", level=1 if "=" in line else 2, title=title.strip())
            continue
        body.append(line)
    yield from _body(body)


def _after_front_matter(lines: list[str]) -> int:
    if lines[0].strip() == "---":
        for number, line in enumerate(lines[1:], start=1):
            if line.strip() in ("---", "..."):
                return number + 1
    return 0


def _is_underlined(body: list[str], line: str) -> bool:
    alone = len(body) == 1 or not body[-2].strip()
    plain = body[-1].strip() and not body[-1].lstrip().startswith(("-", "*", "+", ">", "|"))
    return bool(alone and plain and _UNDERLINE.match(line))


def _body(lines: list[str]) -> Iterator[Block]:
    text = "\n".join(lines)
    if text.strip():
        yield Block(text=text)


def code_sections(text: str) -> Iterator[Section]:
    """A section per top-level definition, from the comments and decorators above it to the next one."""
    lines = text.split("\n")
    starts = [0]
    titles = [""]
    for number, line in enumerate(lines):
        definition = _DEFINITION.match(line)
        if definition:
            first = number
            while first > starts[-1] and lines[first - 1].startswith(("#", "@")):
                first -= 1
            starts.append(first)
            titles.append(definition[1])
    for start, end, title in zip(starts, [*starts[1:], len(lines)], titles, strict=True):
        part = "\n".join(lines[start:end])
        if part.strip():
            metadata: dict[str, Scalar] = {"line": start + 1}
            if title:
                metadata["title"] = title
            yield Section(text=part, metadata=metadata, code=True)
