"""Ollama's interface."""

from deltamem_cli.server.ollama import chat, models

ROUTES = [*chat.ROUTES, *models.ROUTES]
