"""Programs: lines are kept, and definitions are sections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from o1_retriever.documents.encoding import declared_by_code
from o1_retriever.documents.source import Source
from o1_retriever.documents.structure import BELOW, Section, Value

# A class, an implementation or a namespace of more characters is cut at what it holds.
_LONG = 1200
_WORDS = (
    r"(?:(?:export|default|public|private|protected|internal|static|final|abstract|sealed|open|override|async|pub"
    r"(?:\([^)]*\))?|unsafe|extern(?:\s+\"[^\"]*\")?|inline|virtual|const|data|case|partial|local|declare|suspend|"
    r"constexpr|template\s*<[^<>{}]*>)\s+)*"
)
_HOLDERS = (
    r"class|struct|interface|trait|impl(?:\s*<[^<>{}]*>)?|enum|namespace|module|mod|object|record|protocol|"
    r"extension|union"
)
# A definition by its keyword; or, in the family of C, a line with a parameter list that opens a body.
_DEFINITION = re.compile(
    rf"(?P<indent>[ \t]*){_WORDS}(?:"
    rf"(?P<holder>{_HOLDERS})\s+(?P<held>[\w$]+(?:(?:::|\.)[\w$]+)*(?:\s+for\s+\w+)?)"
    r"|(?:def|fn|func|function\*?|fun|sub|proc|defp|defn|defmodule|macro_rules!)\s+(?:\([^()]*\)\s*)?(?P<name>[\w$]+(?:(?:::|\.|:)[\w$]+)*[?!]?)"
    r"|(?:create|CREATE)\s+(?:or\s+replace\s+|OR\s+REPLACE\s+)?(?:table|TABLE|view|VIEW|function|FUNCTION|procedure|"
    r"PROCEDURE)\s+(?P<table>[\w.\"`]+)"
    r"|(?:let|var|val|const|type)\s+(?P<value>[\w$]+)[^=;\n]*=\s*(?:async\s*)?(?:function\b|\([^()]*\)\s*=>|\w+\s*=>)"
    r"|(?P<shell>[\w-]+)\s*\(\)\s*\{"
    r"|type\s+(?P<go>\w+)\s+(?:struct|interface)"
    r"|(?!(?:return|else|if|for|while|switch|throw|new|delete|await|yield|case|using|import|from)\b)"
    r"[A-Za-z_][\w:<>,*&\[\]~ \t]*?[\s*&](?P<c>[A-Za-z_~][\w:~]*)\s*\([^;(){}=]*\)?[^;={}]*(?:\{[^\n]*)?$"
    r")"
)
_ABOVE = re.compile(r"[ \t]*(?:#|//|/\*|\*|@|\[\w|--|;|%|\"\"\")")
_NO_C = {
    ".py",
    ".pyi",
    ".pyx",
    ".rb",
    ".sh",
    ".bash",
    ".zsh",
    ".lua",
    ".sql",
    ".r",
    ".jl",
    ".ex",
    ".exs",
    ".pl",
}
_LONGEST = 400  # characters of a line that may define something


@dataclass(slots=True)
class _Definition:
    line: int
    indent: int
    title: str
    holds: bool


def read_code(source: Source) -> Iterator[Section]:
    """A section for each function, class or type, with the comments and decorators above it."""
    text = source.text(declared_by_code)
    yield from code_sections(text, c_family=source.kind not in _NO_C)


def code_sections(text: str, *, c_family: bool = False) -> Iterator[Section]:
    """The same for a text; `c_family` where a function needs no keyword."""
    lines = text.split("\n")
    titles = {0: ""}  # by the line where a section begins
    for found in _chosen(lines, c_family):
        start, last = found.line, next(reversed(titles))
        while start > last and _ABOVE.match(lines[start - 1]):
            start -= 1
        titles[start] = found.title
    for (start, title), end in zip(titles.items(), [*list(titles)[1:], len(lines)], strict=True):
        part = "\n".join(lines[start:end])
        if part.strip():
            named: dict[str, Value] = {"title": title} if title else {}
            yield Section(text=part, metadata={"line": start + 1, **named}, code=True)


def _chosen(lines: list[str], c_family: bool) -> Iterator[_Definition]:
    """Definitions at the margin, and those right inside of one that is too long to stay whole."""
    found = [each for number, line in enumerate(lines) if (each := _definition(number, line, c_family))]
    margins = [each.line for each in found if each.indent == 0]
    ends = dict(zip(margins, [*margins[1:], len(lines)], strict=False))
    outer: _Definition | None = None
    inner = 0
    for each in found:
        if each.indent == 0:
            long = sum(map(len, lines[each.line : ends[each.line]])) > _LONG
            outer, inner = (each if each.holds and long else None), 0
            yield each
        elif outer is not None:
            inner = inner or each.indent
            if each.indent == inner:
                yield _Definition(each.line, inner, f"{outer.title}{BELOW}{each.title}", False)


def _definition(number: int, line: str, c_family: bool) -> _Definition | None:
    if len(line) > _LONGEST or not (found := _DEFINITION.match(line)):
        return None
    parts = found.groupdict()
    if parts["c"] and not c_family:
        return None
    title = next(
        parts[name] for name in ("held", "name", "table", "value", "shell", "go", "c") if parts[name]
    )
    return _Definition(number, len(parts["indent"].expandtabs(4)), title, bool(parts["holder"]))
