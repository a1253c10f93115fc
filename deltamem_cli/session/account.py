"""What a turn was, in numbers and names, for programs."""

from __future__ import annotations

from typing import Any

from deltamem_cli.memory_view.metrics import total_norm
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.loading import Loaded


def document(
    session: ChatSession, loaded: Loaded, *, thought: str, answered: str, temporary: bool, load_seconds: float
) -> dict[str, Any]:
    """Of the last turn; plain data for JSON. temporary: nothing of the conversation is kept."""
    stats = session.stats
    memory = None
    if session.engine.has_memory and session.settings.write != "none":
        memory = {"norm": total_norm(session.seat.state()), "change": stats.changed}
    return {
        "text": answered,
        "thinking": thought,
        "interrupted": stats.interrupted,
        "model": loaded.model.name,
        "adapter": loaded.adapter.name if loaded.adapter and memory else None,
        "profile": None if temporary else session.profile.name,
        "conversation": None if temporary else session.conversation.id,
        "turn": None if temporary or session.settings.read_only else session.n_turns,
        "tokens": {
            "prompt": stats.prompt_tokens,
            "reply": stats.reply_tokens,
            "thinking": stats.thinking_tokens,
            "written": stats.written_tokens,
        },
        "seconds": {
            "load": round(load_seconds, 3),
            "prompt": round(stats.prompt_seconds, 3),
            "reply": round(stats.reply_seconds, 3),
        },
        "memory": memory,
    }
