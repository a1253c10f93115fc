"""Conversations with a memory for other programs, over HTTP: OpenAI's and Ollama's interfaces, the memory's own, a page."""
