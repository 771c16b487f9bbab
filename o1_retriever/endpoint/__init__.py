"""Asking an OpenAI-compatible chat server: vLLM, Ollama, llama.cpp, or a hosted one.

`chat` is what is asked and what counts of the text of a reply, `client` asks, and `exchange` is what comes
back, and how much and how long is asked.
"""
