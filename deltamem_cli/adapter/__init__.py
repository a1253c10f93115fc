"""Adapter files: published folders in, one GGUF out; knows nothing of llama.cpp or of the command line."""
