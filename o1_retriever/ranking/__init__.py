"""Rankings from scores: ties in order, exact search, BM25, fusion. They know arrays alone."""
