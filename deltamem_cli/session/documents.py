"""Conversations and memories as JSON documents, the same from a command's --json and from a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltamem_cli.store.records import THINKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deltamem_cli.memory_view.metrics import MemoryAfter
    from deltamem_cli.session.chat import ChatSession
    from deltamem_cli.session.forgetting import Forgotten
    from deltamem_cli.session.loading import Loaded
    from deltamem_cli.session.looking import Difference, Look
    from deltamem_cli.store.bundle import Bundle
    from deltamem_cli.store.records import Conversation, Message, Turn


def facts(one: Conversation) -> dict[str, Any]:
    """A conversation without its turns."""
    return {
        "conversation": one.id,
        "profile": one.profile,
        "title": one.heading,
        "created": one.created,
        "updated": one.updated,
        "turns": one.n_turns,
    }


def transcript(one: Conversation, every: Sequence[Turn]) -> dict[str, Any]:
    """A conversation with its turns and what was said in them."""
    return {
        **facts(one),
        "turns": [
            {
                **_turn(turn),
                "messages": [{"role": message.role, "text": message.text} for message in told(turn)],
            }
            for turn in every
        ],
    }


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "turn": turn.number,
        "kind": turn.kind,
        "created": turn.created,
        "model": turn.model.name,
        "adapter": turn.adapter.name if turn.adapter else None,
        "interrupted": turn.interrupted,
    }


def told(turn: Turn) -> list[Message]:
    """Its messages, without a thinking part that a template left empty."""
    return [message for message in turn.messages if message.text or message.role != THINKING]


def inspected(look: Look, chosen: Sequence[int]) -> dict[str, Any]:
    """A memory as it stands, with the layers of these indices."""
    snapshot = look.snapshot
    return {
        "profile": look.conversation.profile,
        "conversation": look.conversation.id,
        "model": snapshot.model.name if snapshot else None,
        "model_fingerprint": snapshot.model.fingerprint if snapshot else None,
        "adapter": snapshot.adapter.name if snapshot else None,
        "adapter_fingerprint": snapshot.adapter.fingerprint if snapshot else None,
        "rank": snapshot.state.shape[2] if snapshot else None,
        "state_heads": snapshot.state.shape[1] if snapshot else None,
        "turns": len(look.turns),
        "tokens_written": look.written,
        "layers": [
            {
                "layer": one.layer,
                "norm": one.norm,
                "effective_rank": one.effective_rank,
                "change": one.change,
                "state": snapshot.state[i].tolist(),
            }
            for i, one in enumerate(look.layers)
            if snapshot and i in chosen
        ],
    }


def history(one: Conversation, every: Sequence[Turn], steps: Mapping[int | None, MemoryAfter]) -> dict[str, Any]:
    """Every turn, and what it did to the memory."""
    return {
        "profile": one.profile,
        "conversation": one.id,
        "turns": [_step(turn, steps.get(turn.number)) for turn in every],
    }


def _step(turn: Turn, step: MemoryAfter | None) -> dict[str, Any]:
    return {
        **_turn(turn),
        "prompt_tokens": turn.prompt_tokens,
        "reply_tokens": turn.reply_tokens,
        "written_tokens": turn.written_tokens,
        "norm": step.norm if step else None,
        "change": step.change if step else None,
    }


def difference(found: Difference, chosen: Sequence[int]) -> dict[str, Any]:
    """How a memory changed, in the layers of these indices."""
    return {
        "profile": found.conversation.profile,
        "conversation": found.conversation.id,
        "before": found.before,
        "after": found.after,
        "change": found.total,
        "layers": [
            {
                "layer": found.layers[i].layer,
                "change": found.layers[i].norm,
                "effective_rank": found.layers[i].effective_rank,
                "difference": found.change[i].tolist(),
            }
            for i in chosen
        ],
    }


def forgotten(conversation: str, result: Forgotten, *, dry_run: bool) -> dict[str, Any]:
    """What forgetting did, or would do."""
    return {
        "conversation": conversation,
        "dry_run": dry_run,
        "forgotten": list(result.turns),
        "replayed": list(result.later),
        "norm_before": result.norm_before,
        "norm_after": result.norm_after,
    }


def contents(taken: Bundle) -> dict[str, Any]:
    """What a file to carry away holds."""
    owners = {(s.model.name, s.adapter.name) for s in [*taken.states.values(), *filter(None, [taken.initial])]}
    return {
        "turns": len(taken.turns),
        "states": len(taken.states) + (taken.initial is not None),
        "messages": sum(len(turn.messages) for turn in taken.turns),
        "written_by": [{"model": model, "adapter": adapter} for model, adapter in sorted(owners)],
    }


def asked(
    session: ChatSession, loaded: Loaded, *, thought: str, answered: str, temporary: bool, load_seconds: float
) -> dict[str, Any]:
    """Of the last turn; plain data for JSON. temporary: nothing of the conversation is kept."""
    from deltamem_cli.memory_view.metrics import total_norm

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
