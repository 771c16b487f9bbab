"""Thoughts and query vectors on disk, so that a query that came before runs no model.

`store` is the cache and what stands in its tables, `sqlite` the file: its place, its connections and its ways
out of damage.
"""

from o1_retriever.cache.sqlite import default_cache_path, make_private_folder
from o1_retriever.cache.store import CacheInfo, ThoughtCache, cache_key

__all__ = ["CacheInfo", "ThoughtCache", "cache_key", "default_cache_path", "make_private_folder"]
