"""Queries in, passages out: the retriever, how it searches, what it finds, and what thinking moved."""
