"""OpenAI's interfaces."""

from deltamem_cli.server.openai import chat, completions, responses

ROUTES = [*chat.ROUTES, *completions.ROUTES, *responses.ROUTES]
