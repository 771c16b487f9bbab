"""Asking an OpenAI-compatible chat server: vLLM, Ollama, llama.cpp, or a hosted one.

`prompt` is what is asked, `client` asks, `limits` is how much and how long, and `reply` what came back.
"""
