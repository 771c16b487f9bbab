"""Small files of binary formats, written by hand: what is in them is known to the letter."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from html import escape

_W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
_RELATIONS = 'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"'
_KINDS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
_P = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
_R = f'xmlns:r="{_KINDS}"'


def archive(files: dict[str, str | bytes]) -> bytes:
    """A zip archive of files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return out.getvalue()


def docx(body: str, **parts: str) -> bytes:
    """A Word document with the XML of its body; `parts` are further files, by their name without .xml."""
    related = "".join(
        f'<Relationship Id="r{number}" Type="{_KINDS}/{name}" Target="{name}.xml"/>'
        for number, name in enumerate(parts)
    )
    kinds = "".join(
        f'<Override PartName="/word/{name}.xml" ContentType="application/vnd.openxmlformats-officedocument.'
        f'wordprocessingml.{name}+xml"/>'
        for name in ("document.main", *parts)
    ).replace("/word/document.main.xml", "/word/document.xml")
    return archive(
        {
            "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Default Extension="xml" ContentType="application/xml"/>{kinds}</Types>',
            "_rels/.rels": f'<Relationships {_RELATIONS}><Relationship Id="r0" Type="{_KINDS}/officeDocument" '
            'Target="word/document.xml"/></Relationships>',
            "word/document.xml": f"<w:document {_W}><w:body>{body}</w:body></w:document>",
            "word/_rels/document.xml.rels": f"<Relationships {_RELATIONS}>{related}</Relationships>",
            "word/styles.xml": f"<w:styles {_W}>"
            + "".join(
                f'<w:style w:type="paragraph" w:styleId="{name.replace(" ", "")}"><w:name w:val="{name}"/></w:style>'
                for name in ("Title", "heading 1", "heading 2", "List Paragraph")
            )
            + "</w:styles>",
            **{f"word/{name}.xml": f"<w:{name} {_W}>{content}</w:{name}>" for name, content in parts.items()},
        }
    )


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of a Word document."""
    look = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f'<w:p>{look}<w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r></w:p>'


def table(*rows: Sequence[str]) -> str:
    """A table of a Word document."""
    cells = ("".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows)
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in cells)}</w:tbl>"


def pptx(*slides: str, notes: str = "") -> bytes:
    """A presentation of slides, each the XML of its shapes, the first with `notes`."""
    files = {
        "ppt/presentation.xml": f"<p:presentation {_P} {_R}><p:sldIdLst>"
        + "".join(f'<p:sldId id="{256 + n}" r:id="rId{n}"/>' for n in range(len(slides)))
        + "</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": f"<Relationships {_RELATIONS}>"
        + "".join(
            f'<Relationship Id="rId{n}" Type="{_KINDS}/slide" Target="slides/slide{n + 1}.xml"/>'
            for n in range(len(slides))
        )
        + "</Relationships>",
        # The number of a slide's file says nothing about its place.
        **{
            f"ppt/slides/slide{n + 1}.xml": f"<p:sld {_P} {_A}><p:cSld><p:spTree>{slide}</p:spTree></p:cSld></p:sld>"
            for n, slide in enumerate(slides)
        },
    }
    if notes:
        files["ppt/slides/_rels/slide1.xml.rels"] = (
            f'<Relationships {_RELATIONS}><Relationship Id="n" Type="{_KINDS}/notesSlide" '
            'Target="../notesSlides/notesSlide1.xml"/></Relationships>'
        )
        files["ppt/notesSlides/notesSlide1.xml"] = (
            f"<p:notes {_P} {_A}><p:cSld><p:spTree>{shape(notes, 'body')}{shape('1', 'sldNum')}</p:spTree></p:cSld>"
            "</p:notes>"
        )
    return archive(files)


def shape(text: str, kind: str = "") -> str:
    """A shape of a slide with a line of text for each line."""
    place = f'<p:nvPr><p:ph type="{kind}"/></p:nvPr>' if kind else ""
    lines = "".join(f"<a:p><a:r><a:t>{escape(line)}</a:t></a:r></a:p>" for line in text.split("\n"))
    return f"<p:sp><p:nvSpPr>{place}</p:nvSpPr><p:txBody>{lines}</p:txBody></p:sp>"


def slide_table(*rows: Sequence[str]) -> str:
    """A table of a slide."""
    lines = "".join(
        f"<a:tr>{''.join(f'<a:tc><a:txBody><a:p><a:r><a:t>{cell}</a:t></a:r></a:p></a:txBody></a:tc>' for cell in row)}"
        "</a:tr>"
        for row in rows
    )
    return f"<p:graphicFrame><a:graphic><a:graphicData><a:tbl>{lines}</a:tbl></a:graphicData></a:graphic></p:graphicFrame>"


def xlsx(**sheets: Sequence[Sequence[object]]) -> bytes:
    """A workbook of sheets, each a list of rows."""
    import openpyxl

    book = openpyxl.Workbook()
    assert book.active is not None
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(list(row))
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def odt(body: str, title: str = "") -> bytes:
    """An OpenDocument file with the XML of its body."""
    names = " ".join(
        f'xmlns:{short}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for short, name in (
            ("office", "office"),
            ("text", "text"),
            ("table", "table"),
            ("draw", "drawing"),
            ("meta", "meta"),
        )
    )
    return archive(
        {
            "mimetype": "application/vnd.oasis.opendocument.text",
            "content.xml": f"<office:document-content {names}><office:body><office:text>{body}</office:text></office:body>"
            "</office:document-content>",
            "meta.xml": f'<office:document-meta {names} xmlns:dc="http://purl.org/dc/elements/1.1/"><office:meta><dc:title>{title}'
            "</dc:title></office:meta></office:document-meta>",
        }
    )


def epub(*chapters: str, title: str = "A book", author: str = "") -> bytes:
    """A book of chapters, each the inside of a page."""
    items = "".join(
        f'<item id="c{n}" href="text/chapter%20{n}.xhtml" media-type="application/xhtml+xml"/>'
        for n in range(len(chapters))
    )
    order = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    return archive(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
            "OEBPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
            f"<dc:title>{title}</dc:title><dc:creator>{author}</dc:creator><dc:language>en</dc:language></metadata>"
            f'<manifest>{items}<item id="nav" href="nav.xhtml" properties="nav"/></manifest><spine>{order}</spine></package>',
            **{
                f"OEBPS/text/chapter {n}.xhtml": f"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><head>"
                f"<title/><script src='x.js'/></head><body>{chapter}</body></html>"
                for n, chapter in enumerate(chapters)
            },
        }
    )


def pdf(*pages: str, rotate: int = 0, title: str = "") -> bytes:
    """A PDF whose pages have these content streams, with Helvetica as F1."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, stream in enumerate(pages):
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R /Rotate {rotate} "
            "/Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    objects.append(f"<< /Title ({title}) >>")
    body, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    places = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    return (
        f"{body}xref\n0 {size}\n0000000000 65535 f \n{places}"
        f"trailer << /Size {size} /Root 1 0 R /Info {len(objects)} 0 R >>\nstartxref\n{len(body)}\n%%EOF"
    ).encode("latin-1")


def lines(*texts: str, left: float = 72, top: float = 700, step: float = 16) -> str:
    """The content stream of lines of text, one below the other."""
    return "\n".join(
        f"BT /F1 11 Tf {left} {top - step * number} Td ({text}) Tj ET" for number, text in enumerate(texts)
    )


def encrypted(data: bytes, algorithm: str, *, password: str = "") -> bytes:
    """The same PDF, encrypted."""
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(data))
    writer.encrypt(user_password=password, owner_password="owner", algorithm=algorithm)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()
