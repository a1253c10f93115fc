"""The one that is asked: is told conversations and asked about them in other sessions, with a real database between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deltamem_cli.engine import Engine, Seat
from deltamem_cli.evaluation.cases import Asked, ToldTurn
from deltamem_cli.evaluation.matching import sentence_is_over
from deltamem_cli.evaluation.perplexity import perplexity
from deltamem_cli.session import opening
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.loading import Loaded, restore
from deltamem_cli.session.request import Request
from deltamem_cli.session.thinking import Thought
from deltamem_cli.store import conversations
from deltamem_cli.store.database import Store

ANSWER_TOKENS = 20  # only the first sentence counts
GREEDY: Mapping[str, float] = {"temperature": 0, "repeat_penalty": 1}


@dataclass(frozen=True)
class Answer:
    """tokens: all that the session processed for it, from an empty context on: what it was shown again, too."""

    text: str
    tokens: int


class Respondent:
    """A model with its adapter, the same model without, and the database of their conversations."""

    def __init__(
        self,
        loaded: Loaded,
        plain: Engine,
        database: Path,
        write: str | None = None,
        *,
        request: Request | None = None,
    ) -> None:
        """write: what of a turn is written; None: as the adapter was trained. request: a settled one, that was loaded."""
        self.request = request or Request()
        self.write = write or loaded.write  # not as the user has configured chats
        self.with_memory = loaded
        self.without_memory = Loaded(Seat.first(plain), loaded.model, None, "It is measured without.")
        self.database = database

    @property
    def think(self) -> bool | None:
        """As a Request has it: what is thought would be cut off before the answer begins."""
        return False if self.with_memory.engine.model.template.can_switch_thinking else None

    def tell(
        self, exchanges: Iterable[ToldTurn], *, cid: str | None = None, system: str = "", tokens: int | None = None
    ) -> str:
        """Holds a session that begins with an empty context, commits and closes it. Returns the conversation's id.

        The replies are given, so that the same is said whatever the model. cid: the conversation to go on with.
        tokens: how many are enough.
        """
        said = 0
        with self.session(cid, system=system) as session:
            for exchange in exchanges:
                if exchange.reply is None:
                    session.remember(exchange.said)
                else:
                    reply = session.engine.model.tokenize(exchange.reply)
                    for _ in session.ask(exchange.said, reply=reply):
                        pass
                said += session.stats.prompt_tokens + session.stats.reply_tokens
                if tokens is not None and said >= tokens:
                    break
            return session.conversation.id

    @contextmanager
    def session(
        self,
        cid: str | None = None,
        *,
        system: str = "",
        memory: bool = True,
        replay_tokens: int = 0,
        read_only: bool = False,
        max_tokens: int = ANSWER_TOKENS,
        options: Mapping[str, float] | None = None,
    ) -> Iterator[ChatSession]:
        """A session of conversation `cid`, or of a new one. It writes, as a chat does.

        replay_tokens: how much of the earlier turns the model is shown again. max_tokens: of a reply. options: how its
        tokens are drawn; None: the likeliest is taken.
        """
        request = Request(
            model=self.request.model,  # and so not the template that is configured for another one
            template=self.request.template,
            cid=cid,
            new=cid is None,
            system=system,
            replay_tokens=replay_tokens,
            read_only=read_only,
            write=self.write,
            options={**GREEDY, **(options or {}), "max_tokens": max_tokens},
            think=self.think,
        )
        with Store.open(self.database) as store:
            profile = opening.find_profile(store, request)
            conversation = opening.pick(store, profile, request)
            loaded = self.with_memory if memory else self.without_memory
            yield opening.begin(store, request, loaded, profile, conversation)

    def perplexity(self, text: str, cid: str | None = None) -> float:
        """Of plain text, with the memory of conversation `cid`; None: of the model without memory."""
        seat = self.with_memory.seat
        tokens = seat.model.tokenize(text)[: seat.n_ctx_seq]
        if cid is None:
            return perplexity(self.without_memory.seat, tokens)
        with Store.open(self.database) as store:
            restore(store, conversations.get(store, cid), self.with_memory)
        return perplexity(seat, tokens)


def answer(session: ChatSession, question: Asked) -> Answer:
    """The first sentence of the answer to `question`; afterwards the session is as if it had not been asked."""
    text = ""
    for piece in session.ask(question.content):
        if not isinstance(piece, Thought):
            text += piece
        if sentence_is_over(text, question.value):
            session.stop()
    tokens, _ = session.context_filled
    session.undo()
    return Answer(text, tokens)
