"""XML, within archives and by itself, parsed by lxml: nothing is fetched, and entities cannot grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from o1_retriever.documents.source import Source
from o1_retriever.documents.structure import Block, Section, sections, valid
from o1_retriever.errors import require

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
