"""Asking an OpenAI-compatible chat server: vLLM, Ollama, llama.cpp, or a hosted one.

`chat` is what is asked and what counts of a reply's text, `client` asks, and `exchange` is what comes back and
how much and how long is asked.
"""
