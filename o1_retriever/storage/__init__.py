"""How an index is kept: a ledger of the documents, Chroma's graph to find them, a store that joins both."""
