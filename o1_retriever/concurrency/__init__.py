"""What happens between threads, coroutines and processes.

`sent` is what travels to another process, `forks` what a fork leaves to the child, `shared` work that several
callers want at once, `blocking` how steps that are coroutines serve other callers too, and `awaiting` the way
of an awaited query.
"""
