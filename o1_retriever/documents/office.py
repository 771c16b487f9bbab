"""Office documents: Word, PowerPoint, Excel, OpenDocument and EPUB."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any
from urllib.parse import unquote

from o1_retriever.documents.html import html_blocks
from o1_retriever.documents.markup import attribute, name_of, parse, titled
from o1_retriever.documents.rows import row_section, unused_heads
from o1_retriever.documents.source import Source, declared_by_html
from o1_retriever.documents.structure import Block, Section, Value, sections, valid
from o1_retriever.errors import require

# An old or encrypted Office file is no zip archive, but begins with this.
_OLE = b"\xd0\xcf\x11\xe0"
_DIAGRAMS = ("diagramData", "chart", "notesSlide")
_COLUMNS = 16_384  # that Excel has


def read_docx(source: Source) -> Iterator[Section]:
    """A Word document, by way of mammoth's HTML: headings, lists, tables, footnotes, text boxes."""
    mammoth = require("mammoth", extra="documents", purpose="Reading Word documents")
    archive = _office_archive(source)
    _check_entities(source, archive)
    try:
        page = mammoth.convert_to_html(
            archive.fp,
            style_map="p[style-name='Title'] => h1.title:fresh\np[style-name='Subtitle'] => p:fresh",
            convert_image=mammoth.images.img_element(lambda image: {"src": "", "alt": image.alt_text or ""}),
        )
    except Exception as error:  # a file of another program may fail in any way there is
        raise source.error(f"it cannot be read as a Word document ({_line(error)}).") from error
    blocks = _title_first(html_blocks(f"<body>{page.value}", source), page.value)
    yield from sections(blocks, joint="\n\n")


def _title_first(blocks: list[Block], page: str) -> list[Block]:
    """The paragraph in the style "Title" as the title of the whole."""
    if 'class="title"' not in page:
        return blocks
    place = next((place for place, block in enumerate(blocks) if block.level == 1), None)
    if place is None:
        return blocks
    head = blocks[place]
    return [*blocks[:place], Block(text=head.text, level=0, title=head.title), *blocks[place + 1 :]]


def read_pptx(source: Source) -> Iterator[Section]:
    """A section for each slide: its shapes, tables, diagrams, charts and notes."""
    archive = _office_archive(source)
    main = "ppt/presentation.xml"
    slides = _relations(source, archive, main)
    presentation = _part(source, archive, main)
    if presentation is None:
        raise source.error("it has no ppt/presentation.xml; expected a PowerPoint presentation.")
    # The id of the slide itself is an attribute without a namespace, that of the relation has one.
    order = [
        next((value for key, value in each.attrib.items() if key.endswith("}id")), "")
        for each in presentation.iter("{*}sldId")
    ]
    for number, relation in enumerate(order, start=1):
        _, target = slides.get(relation, ("", ""))
        slide = _part(source, archive, target)
        if slide is None:
            source.note(f"slide {number} is missing.")
            continue
        title, lines = _slide(slide)
        for kind, other in _relations(source, archive, target).values():
            part = _part(source, archive, other) if kind in _DIAGRAMS else None
            if part is not None:
                lines += _notes(part) if kind == "notesSlide" else _paragraphs(part)
        text = "\n".join(line for line in lines if line.strip())
        if text:
            named: dict[str, Value] = {"title": title} if title else {}
            yield Section(text=text, metadata={"page": number, **named})


def _slide(slide: Any) -> tuple[str, list[str]]:
    title, lines = "", []
    for shape in slide.iter("{*}sp", "{*}graphicFrame"):
        table = next(shape.iter("{*}tbl"), None)
        if table is not None:
            lines += [
                " | ".join(" ".join(_paragraphs(cell)) for cell in row.iter("{*}tc"))
                for row in table.iter("{*}tr")
            ]
            continue
        texts = _paragraphs(shape)
        kind = next((attribute(place, "type") for place in shape.iter("{*}ph")), "")
        if kind in ("title", "ctrTitle") and texts and not title:
            title = " ".join(texts)
            lines[:0] = [title]
        elif kind not in ("sldNum", "dt", "ftr"):
            lines += texts
    return title, lines


def _notes(part: Any) -> list[str]:
    lines = []
    for shape in part.iter("{*}sp"):
        if any(attribute(place, "type") == "body" for place in shape.iter("{*}ph")):
            lines += _paragraphs(shape)
    return lines


def _paragraphs(element: Any) -> list[str]:
    """The paragraphs of DrawingML in an element, and the captions and values of a chart."""
    lines = []
    for paragraph in element.iter("{*}p", "{*}v"):
        if name_of(paragraph) == "v":
            parts = [paragraph.text or ""]
        else:
            parts = [
                "\n" if name_of(each) == "br" else each.text or "" for each in paragraph.iter("{*}t", "{*}br")
            ]
        text = " ".join(valid("".join(parts)).split())
        if text:
            lines.append(text)
    return lines


def _relations(source: Source, archive: zipfile.ZipFile, part: str) -> dict[str, tuple[str, str]]:
    """The kind and the target of each relation of a part, by its id."""
    folder, name = posixpath.split(part)
    root = _part(source, archive, f"{folder}/_rels/{name}.rels")
    found = {}
    for relation in root if root is not None else ():
        if attribute(relation, "TargetMode") != "External":
            target = posixpath.normpath(posixpath.join("/", folder, attribute(relation, "Target"))).lstrip(
                "/"
            )
            found[attribute(relation, "Id")] = (attribute(relation, "Type").rpartition("/")[2], target)
    return found


def _part(source: Source, archive: zipfile.ZipFile, name: str) -> Any:
    """A part of an archive as XML, None where there is none."""
    data = source.member(archive, name)
    return None if data is None else parse(data, source, what=name)


def read_xlsx(source: Source) -> Iterator[Section]:
    """A section for each row of each sheet, with the names of its columns."""
    openpyxl = require("openpyxl", extra="documents", purpose="Reading Excel workbooks")
    archive = _office_archive(source)
    _check_entities(source, archive)
    try:
        book = openpyxl.load_workbook(archive.fp, read_only=True, data_only=True, keep_links=False)
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # what a file says about its size is often wrong
            heads: list[str] = []
            used: set[int] = set()
            for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
                cells = [_cell(value) for value in row[:_COLUMNS]]
                if not any(cells):
                    continue
                if not heads:
                    heads = cells
                    if sum(map(bool, cells)) > 1:
                        continue
                    heads = []
                used.update(place for place, cell in enumerate(cells) if cell)
                yield row_section(heads, cells, number, title=sheet.title)
            yield from unused_heads(source, heads, used, title=sheet.title)
    except Exception as error:  # as above
        raise source.error(f"it cannot be read as an Excel workbook ({_line(error)}).") from error


def _cell(value: Any) -> str:
    if isinstance(value, datetime) and not (value.hour or value.minute or value.second):
        value = value.date()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return "" if value is None else " ".join(valid(str(value)).split())


def read_opendocument(source: Source) -> Iterator[Section]:
    """Text, slides and sheets in OpenDocument."""
    archive = _office_archive(source)
    content = _part(source, archive, "content.xml")
    if content is None:
        raise source.error("it has no content.xml; expected an OpenDocument file.")
    meta = _part(source, archive, "meta.xml")
    title = "" if meta is None else next((each.text or "" for each in meta.iter("{*}title")), "")
    body = next(content.iter("{*}body"), content)
    yield from sections(_opendocument_blocks(body), metadata=titled({"title": title.strip() or None}))


def _opendocument_blocks(body: Any) -> Iterator[Block]:
    waiting = [body]
    while waiting:
        element = waiting.pop()
        name = name_of(element)
        if name == "h":
            text = _inline(element)
            level = attribute(element, "outline-level")
            yield Block(text=text, level=min(int(level), 10) if level.isdigit() else 1, title=text)
        elif name == "p":
            if text := _inline(element):
                yield Block(text=text)
        elif name == "table-row":
            cells = [" ".join(filter(None, map(_inline, cell.iter("{*}p", "{*}h")))) for cell in element]
            while cells and not cells[-1]:
                cells.pop()
            if cells:
                yield Block(text=" | ".join(cells))
        elif name and name not in ("tracked-changes", "forms", "sequence-decls"):
            waiting += reversed(element)


def _inline(element: Any) -> str:
    """The text of a paragraph; a space, a tab and the end of a line are elements of their own."""
    parts: list[str] = [element.text or ""]
    for child in element:
        name = name_of(child)
        if name in ("s", "tab", "line-break"):
            parts.append(" ")
        elif name and name != "annotation":
            parts.append(f" {_inline(child)} " if name in ("note", "frame") else _inline(child))
        parts.append(child.tail or "")
    return " ".join(valid("".join(parts)).split()) if name_of(element) in ("p", "h") else "".join(parts)


def read_epub(source: Source) -> Iterator[Section]:
    """The chapters of a book in the order in which they are read, under its title."""
    archive = _office_archive(source)
    container = _part(source, archive, "META-INF/container.xml")
    paths = (
        [] if container is None else [attribute(each, "full-path") for each in container.iter("{*}rootfile")]
    )
    package = _part(source, archive, paths[0]) if paths else None
    if package is None:
        raise source.error("it has no package document; expected an EPUB book.")
    folder = posixpath.dirname(paths[0])
    items = {attribute(item, "id"): item for item in package.iter("{*}item")}
    fields = {
        "title": next((each.text for each in package.iter("{*}title")), None),
        "author": [each.text for each in package.iter("{*}creator") if each.text],
        "language": next((each.text for each in package.iter("{*}language")), None),
    }
    metadata = titled(fields)
    for reference in package.iter("{*}itemref"):
        identity = attribute(reference, "idref")
        item = items.get(identity)
        href = "" if item is None else attribute(item, "href")
        inside = posixpath.normpath(posixpath.join(folder, unquote(href.partition("#")[0])))
        name = inside if href else identity
        data = source.member(archive, name) if href else None
        if data is None:
            source.note(f"the chapter {name!r} is missing.")
        elif not attribute(item, "properties").startswith("nav"):
            blocks = html_blocks(source.decoded(data, declared_by_html(data)), source)
            yield from sections(blocks, joint="\n\n", metadata=metadata)


def _office_archive(source: Source) -> zipfile.ZipFile:
    data = source.data()
    if data.startswith(_OLE):
        raise source.error(
            "it is encrypted, or of an Office before 2007; expected a file that opens without a password.",
            hint="Save it as docx, pptx or xlsx without a password.",
        )
    return source.archive(data)


def _check_entities(source: Source, archive: zipfile.ZipFile) -> None:
    """Office writes no DTD: whoever does wants the parser of another library to work without end."""
    for member in archive.infolist():
        if member.filename.endswith((".xml", ".rels")) and member.file_size:
            head = source.member(archive, member.filename) or b""
            if b"<!DOCTYPE" in head[:4096] or b"<!ENTITY" in head[:4096]:
                raise source.error(
                    f"{member.filename!r} in it declares entities; expected a file of an Office."
                )


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.100}"
