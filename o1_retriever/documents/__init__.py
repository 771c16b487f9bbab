"""Documents: reading files of many formats and cutting them into passages."""

from o1_retriever.documents.document import Chunking, Document, read_documents, split_passages
from o1_retriever.documents.readers import SUFFIXES, read_sections
from o1_retriever.documents.source import ReadOptions
from o1_retriever.documents.structure import Section

__all__ = [
    "SUFFIXES",
    "Chunking",
    "Document",
    "ReadOptions",
    "Section",
    "read_documents",
    "read_sections",
    "split_passages",
]
