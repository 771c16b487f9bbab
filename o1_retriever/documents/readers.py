"""Which reader reads which kind of file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from o1_retriever.documents import code, markup, office, parts, pdf, rows
from o1_retriever.documents.html import read_html
from o1_retriever.documents.source import ReadOptions, Source
from o1_retriever.documents.structure import Section, is_visible
from o1_retriever.documents.xml import read_xml

Reader = Callable[[Source], Iterator[Section]]


def read_text(source: Source) -> Iterator[Section]:
    """A text without marks of structure."""
    yield Section(text=source.text())


def read_lines(source: Source) -> Iterator[Section]:
    """A text whose lines matter: settings, logs, data."""
    yield Section(text=source.text(), code=True)


_CODE = (
    *(".py", ".pyi", ".pyx", ".js", ".jsx", ".mjs", ".cjs", ".ts", ".tsx", ".java", ".kt", ".kts", ".scala"),
    *(".groovy", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".hxx", ".m", ".mm", ".cs", ".go", ".rs"),
    *(".swift", ".rb", ".php", ".pl", ".pm", ".lua", ".r", ".jl", ".sh", ".bash", ".zsh", ".ps1", ".sql"),
    *(
        ".dart",
        ".ex",
        ".exs",
        ".erl",
        ".hs",
        ".ml",
        ".clj",
        ".vue",
        ".svelte",
        ".proto",
        ".zig",
        ".nim",
        ".fs",
    ),
    *(".vb", ".cu", ".f90"),
)
_LINES = (
    *(".log", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".properties", ".css", ".scss", ".less"),
    *(".graphql", ".tf", ".cmake", ".gradle", ".diff", ".patch"),
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
    ".ipynb": parts.read_notebook,
    ".eml": parts.read_mail,
    **dict.fromkeys([".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"], rows.read_json_lines),
    **dict.fromkeys([".json", ".json.gz"], rows.read_json),
    **dict.fromkeys([".csv", ".tsv", ".csv.gz", ".tsv.gz"], rows.read_table),
    **dict.fromkeys([".xml", ".xml.gz"], read_xml),
    **dict.fromkeys([".txt.gz"], read_text),
    **dict.fromkeys(_CODE, code.read_code),
    **dict.fromkeys(_LINES, read_lines),
}
SUFFIXES = tuple(_READERS)
# Kinds that people expect to be read, with what to do about them.
_OLD = {
    ".doc": "Type: soffice --convert-to docx OLD",
    ".ppt": "Type: soffice --convert-to pptx OLD",
    ".xls": "Type: soffice --convert-to xlsx OLD",
    ".rtf": "Type: soffice --convert-to docx OLD",
}


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
        raise source.error(
            f"the suffix {suffix!r} is unknown; expected one of {', '.join(SUFFIXES)}.",
            hint=_OLD.get(suffix, "Convert the file to one of these."),
        )
    yield from (section for section in reader(source) if is_visible(section.text))
