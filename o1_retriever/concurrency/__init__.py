"""What happens between threads, coroutines and processes.

`sent` is what travels to another process, `forks` what a fork leaves to the child, `shared` work that several
callers want at once, `batches` a thread that coroutines ask, and `awaiting` the way of an awaited query.
"""
