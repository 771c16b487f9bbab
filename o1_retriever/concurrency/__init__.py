"""What happens between threads, coroutines and processes.

`processes` is what a fork leaves to the child and what travels to another process, `shared` work that several
callers want at once and steps that serve callers with and without an event loop, and `awaiting` the way of an
awaited query.
"""
