"""Documents with their vectors on disk: a ledger, the graph to find them, and a store that joins both."""
