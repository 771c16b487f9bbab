"""Which reader reads which kind of file; and the readers of plain text, programs, notebooks and e-mails."""

from __future__ import annotations

import contextlib
import email
import email.policy
import email.utils
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from o1_retriever.documents import markup, office, pdf, rows
from o1_retriever.documents.html import html_blocks, read_html
from o1_retriever.documents.source import ReadOptions, Source, declared_by_code, declared_by_html
from o1_retriever.documents.structure import BELOW, Block, Section, Value, is_visible, sections, valid

Reader = Callable[[Source], Iterator[Section]]

# Characters of what a cell printed: enough to say what it was, short of a training's log.
_OUTPUT = 1000
_ATTACHMENTS = 10
_HEADER = 8000
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


def read_text(source: Source) -> Iterator[Section]:
    """A text without marks of structure."""
    yield Section(text=source.text())


def read_lines(source: Source) -> Iterator[Section]:
    """A text whose lines matter: settings, logs, data."""
    yield Section(text=source.text(), code=True)


def read_notebook(source: Source) -> Iterator[Section]:
    """The cells of a notebook: text under its headings, code with what it printed, cut."""
    text = source.text()
    if not text.strip():
        return
    try:
        notebook = json.loads(text)
        cells = notebook.get("cells") or [
            cell for sheet in notebook.get("worksheets", ()) for cell in sheet["cells"]
        ]
        blocks = [block for cell in cells for block in _cell(cell, source)]
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise source.error(f"it is no notebook ({error!s:.80}); expected Jupyter's JSON.") from None
    yield from sections(blocks)


def _cell(cell: dict[str, Any], source: Source) -> Iterator[Block]:
    text = valid(_joined(cell.get("source", cell.get("input", ""))))
    kind = cell.get("cell_type")
    if kind == "heading":
        level = int(cell.get("level", 1))
        yield Block(text=f"{'#' * level} {text}", level=level, title=text)
    elif kind in ("markdown", "raw"):
        yield from markup.markdown_blocks(text)
    elif text.strip():
        yield Block(text=text)
    for output in cell.get("outputs", ()):
        printed = valid(_printed(output, source)).rstrip()
        if len(printed) > _OUTPUT:
            source.note(f"outputs of more than {_OUTPUT:,} characters were cut.")
            printed = f"{printed[:_OUTPUT]}…"
        if printed.strip():
            yield Block(text=printed)


def _printed(output: dict[str, Any], source: Source) -> str:
    if output.get("output_type") in ("error", "pyerr"):
        return f"{output.get('ename', '')}: {output.get('evalue', '')}"
    found = output.get("data", output)
    data = found if isinstance(found, dict) else {}
    kinds = (output.get("text"), data.get("text/plain"), data.get("text/markdown"))
    text = next((_joined(kind) for kind in kinds if kind), "")
    page = "" if text else _joined(data.get("text/html"))
    return "\n".join(block.text for block in html_blocks(page, source)) if page else text


def _joined(text: Any) -> str:
    return text if isinstance(text, str) else "".join(text or ())


def read_mail(source: Source) -> Iterator[Section]:
    """The text of a message under its subject; attachments are noted, not read."""
    data = source.data()
    if not data.strip():
        return
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    _without_long_headers(message, source)
    headers = {name: _header(message, name) for name in ("subject", "from", "to", "date")}
    with contextlib.suppress(ValueError, TypeError):  # a date of no known form stays as it is written
        headers["date"] = email.utils.parsedate_to_datetime(headers["date"]).isoformat()
    metadata: dict[str, Value] = {
        name: value for name, value in headers.items() if value and name != "subject"
    }
    if headers["subject"]:
        metadata["title"] = headers["subject"]
    body = [Block(text=headers["subject"])] if headers["subject"] else []
    body += _body(message, source)
    names = [valid(part.get_filename() or "without a name") for part in message.iter_attachments()]
    if names:
        more = f" and {len(names) - _ATTACHMENTS} more" if len(names) > _ATTACHMENTS else ""
        source.note(f"its attachments were not read: {', '.join(names[:_ATTACHMENTS])}{more}.")
    yield from sections(body, joint="\n\n", metadata=metadata)


def _without_long_headers(message: EmailMessage, source: Source) -> None:
    """Leave out headers that nobody reads: taking one apart costs time and memory by the square of it."""
    waiting: list[Any] = [message]
    while waiting:
        part = waiting.pop()
        for name in {name for name, value in part.raw_items() if len(value) > _HEADER}:
            source.note(
                f"its header {valid(name)!r:.60} is longer than {_HEADER:,} characters and was left out."
            )
            del part[name]
        if part.is_multipart():
            waiting += part.get_payload()


def _header(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(valid(str(message.get(name, ""))).split())
    except (ValueError, AttributeError, LookupError, TypeError):  # headers that no standard allows
        return ""


def _body(message: EmailMessage, source: Source) -> list[Block]:
    part = message.get_body(("plain", "html"))
    if part is None:
        return []
    data = part.get_payload(decode=True)
    content = data if isinstance(data, bytes) else b""
    text = source.decoded(content, part.get_content_charset() or declared_by_html(content))
    if part.get_content_subtype() == "html":
        # Headings within a message are its text.
        return [Block(text=block.text) for block in html_blocks(text, source)]
    return [Block(text=text.strip())] if text.strip() else []


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


_CODE = (
    *(".py", ".pyi", ".pyx", ".js", ".jsx", ".mjs", ".cjs", ".ts", ".tsx", ".java", ".kt", ".kts", ".scala"),
    *(".groovy", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".hxx", ".m", ".mm", ".cs", ".go", ".rs"),
    *(".swift", ".rb", ".php", ".pl", ".pm", ".lua", ".r", ".jl", ".sh", ".bash", ".zsh", ".ps1", ".sql"),
    *(".dart", ".ex", ".exs", ".erl", ".hs", ".ml", ".clj", ".vue", ".svelte", ".proto", ".zig", ".nim"),
    *(".fs", ".vb", ".cu", ".f90"),
)
_LINES = (
    *(".log", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".properties", ".css", ".scss", ".less"),
    *(".graphql", ".tf", ".cmake", ".gradle", ".diff", ".patch", ".bat", ".cmd", ".bib", ".json5", ".po"),
)
_MARKDOWN = (".md", ".markdown", ".mdown", ".mkd", ".mkdn", ".mdx", ".rmd", ".qmd")
_READERS: dict[str, Reader] = {
    **dict.fromkeys([".txt", ".text", ".srt", ".vtt"], read_text),
    **dict.fromkeys(_MARKDOWN, markup.read_markdown),
    **dict.fromkeys([".rst", ".rest"], markup.read_rst),
    **dict.fromkeys([".adoc", ".asciidoc", ".org", ".tex"], markup.read_line_headings),
    **dict.fromkeys([".html", ".htm", ".xhtml"], read_html),
    ".pdf": pdf.read_pdf,
    **dict.fromkeys([".docx", ".docm"], office.read_docx),
    **dict.fromkeys([".pptx", ".pptm"], office.read_pptx),
    **dict.fromkeys([".xlsx", ".xlsm"], office.read_xlsx),
    **dict.fromkeys([".odt", ".odp", ".ods"], office.read_opendocument),
    ".epub": office.read_epub,
    ".ipynb": read_notebook,
    ".eml": read_mail,
    **dict.fromkeys([".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"], rows.read_json_lines),
    **dict.fromkeys([".json", ".json.gz"], rows.read_json),
    **dict.fromkeys([".csv", ".tsv", ".csv.gz", ".tsv.gz"], rows.read_table),
    **dict.fromkeys([".xml", ".xml.gz"], markup.read_xml),
    **dict.fromkeys([".txt.gz"], read_text),
    **dict.fromkeys(_CODE, read_code),
    **dict.fromkeys(_LINES, read_lines),
}
SUFFIXES = tuple(_READERS)
# What a message says of them: all are more than anybody reads.
KNOWN_KINDS = ".txt, .md, .html, .pdf, .docx, .csv, .jsonl, .py and others (docs/documents.md)"
# Kinds that people expect to be read, and what they can be converted to.
_OLD = {".doc": "docx", ".ppt": "pptx", ".xls": "xlsx", ".rtf": "docx"}


def suffix_of(path: Path) -> str:
    """The suffix by which a file is read, such as .md or .jsonl.gz; empty for a name without one."""
    name = path.name.lower()
    suffix = Path(name).suffix
    return "".join(Path(name).suffixes[-2:]) if suffix == ".gz" else suffix


def is_known(path: Path) -> bool:
    """Whether a file is read, or is refused by name. One without a suffix is read if it proves to be text."""
    return suffix_of(path) in _READERS or not path.suffix or path.suffix.lower() in _OLD


def read_sections(
    path: str | os.PathLike[str], *, options: ReadOptions | None = None, notes: list[str] | None = None
) -> Iterator[Section]:
    """The sections of a file, read by its suffix (one of `SUFFIXES`), or as text where it has none.

    `notes` gets what there is to say: rows and pages that were left out, an encoding that was a guess. Raises
    `DocumentError` when the file cannot be read, is binary, over a limit, encrypted, broken or holds images
    alone, possibly after some sections; `MissingExtraError` without the `documents` extra.
    """
    yield from sections_of(Source(Path(path), options or ReadOptions(), notes))


def sections_of(source: Source) -> Iterator[Section]:
    """The sections of an opened file that have something to see."""
    suffix = suffix_of(source.path)
    reader = _READERS.get(suffix) or (None if source.path.suffix else read_text)
    if reader is None:
        if new := _OLD.get(suffix):
            raise source.error(
                f"{suffix} is not read; expected {new}.", hint=f"Type: soffice --convert-to {new} OLD"
            )
        raise source.error(
            f"the suffix {suffix!r} is unknown; expected one of {KNOWN_KINDS}.",
            hint="Convert the file to one of these.",
        )
    yield from (section for section in reader(source) if is_visible(section.text))
