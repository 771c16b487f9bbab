"""Files of parts that are each read in their own way: notebooks and e-mails."""

from __future__ import annotations

import email
import email.policy
import json
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

from o1_retriever.documents.encoding import declared_by_html
from o1_retriever.documents.html import html_blocks
from o1_retriever.documents.markup import markdown_blocks
from o1_retriever.documents.source import Source
from o1_retriever.documents.structure import Block, Section, Value, sections, valid

# Characters of what a cell printed: enough to say what it was, short of a training's log.
_OUTPUT = 1000
_ATTACHMENTS = 10


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
        yield from markdown_blocks(text)
    elif text.strip():
        yield Block(text=text)
    for output in cell.get("outputs", ()):
        printed = valid(_printed(output)).rstrip()
        if len(printed) > _OUTPUT:
            source.note(f"outputs of more than {_OUTPUT:,} characters were cut.")
            printed = f"{printed[:_OUTPUT]}…"
        if printed.strip():
            yield Block(text=printed)


def _printed(output: dict[str, Any]) -> str:
    if output.get("output_type") in ("error", "pyerr"):
        return f"{output.get('ename', '')}: {output.get('evalue', '')}"
    data = output.get("data", output)
    return _joined(output.get("text", data.get("text/plain", "") if isinstance(data, dict) else ""))


def _joined(text: Any) -> str:
    return text if isinstance(text, str) else "".join(text or ())


def read_mail(source: Source) -> Iterator[Section]:
    """The text of a message under its subject; attachments are noted, not read."""
    data = source.data()
    if not data.strip():
        return
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    headers = {name: _header(message, name) for name in ("subject", "from", "to", "date")}
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


def _header(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(valid(str(message.get(name, ""))).split())
    except (
        ValueError,
        IndexError,
        AttributeError,
        LookupError,
        TypeError,
    ):  # headers that no standard allows
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
