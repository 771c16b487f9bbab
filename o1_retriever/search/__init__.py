"""Queries in, passages out: the retriever, how it searches and what it finds."""
