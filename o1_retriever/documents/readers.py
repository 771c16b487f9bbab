"""Which reader reads which kind of file; and the readers of plain text, notebooks and e-mails."""

from __future__ import annotations

import contextlib
import email
import email.policy
import email.utils
import json
import os
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from o1_retriever.documents import code, markup, office, pdf, rows
from o1_retriever.documents.encoding import declared_by_html
from o1_retriever.documents.html import html_blocks, read_html
from o1_retriever.documents.source import ReadOptions, Source
from o1_retriever.documents.structure import Block, Section, Value, is_visible, sections, valid
from o1_retriever.documents.xml import read_xml

Reader = Callable[[Source], Iterator[Section]]

# Characters of what a cell printed: enough to say what it was, short of a training's log.
_OUTPUT = 1000
_ATTACHMENTS = 10
_HEADER = 8000


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
    **dict.fromkeys([".xml", ".xml.gz"], read_xml),
    **dict.fromkeys([".txt.gz"], read_text),
    **dict.fromkeys(_CODE, code.read_code),
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
