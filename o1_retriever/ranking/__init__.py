"""Rankings from scores: BM25, fusion, and the best of several. They know arrays and keys alone."""
