"""Turns episodes into tokens exactly as inference will feed them; knows nothing of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from deltamem_cli.episodes import Episode, Message, Question
from deltamem_cli.training.tokens import Tokenizer

# stand for what is said, where its place in a rendered template is looked for
USER, REPLY = "\u2402u\u2403", "\u2402r\u2403"


@dataclass
class EncodedSession:
    """spans: the message of each token, as SSW writes; content: whether a token is part of a told value.

    opening: leading tokens, the system prompt's, which inference never writes; system, messages: what was encoded
    """

    tokens: list[int]
    spans: list[int]
    content: list[bool]
    opening: int
    system: str
    messages: Sequence[Message]


@dataclass
class EncodedQuestion:
    """prompt ends with the user's turn, head opens the assistant's, answer ends with the end of the turn.

    opening: leading tokens of prompt that are not written; value_at: places of the value's tokens in answer;
    plain: ordinary talk that the memory must leave as it is; shown: earlier messages that the prompt begins with
    """

    prompt: list[int]
    head: list[int]
    answer: list[int]
    question: Question
    opening: int
    value_at: list[int] = field(default_factory=list)
    plain: bool = False
    shown: Sequence[Message] = ()

    def at_value(self) -> EncodedQuestion:
        """The same, answered up to the value: what is left is the value and the token that ends it."""
        if not self.value_at:
            return self
        first, last = self.value_at[0], self.value_at[-1]
        given = self.head + self.answer[:first]
        return replace(
            self,
            prompt=self.prompt + given[:-1],
            head=given[-1:],
            answer=self.answer[first : last + 2],
            value_at=[i - first for i in self.value_at],
        )


@dataclass
class EncodedEpisode:
    sessions: list[EncodedSession]
    questions: list[EncodedQuestion]

    @property
    def written(self) -> list[int]:
        """The tokens of all sessions that the memory writes."""
        return [t for s in self.sessions for t in s.tokens[s.opening :]]


class Encoder:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def episode(self, episode: Episode) -> EncodedEpisode:
        return EncodedEpisode(
            [self.session(episode.system, messages) for messages in episode.sessions],
            [self.question(episode.system, q) for q in episode.questions],
        )

    def session(self, system: str, messages: Sequence[Message]) -> EncodedSession:
        """One conversation as it stands in the context when it ends."""
        rendered = _with_system(system, messages)
        text = self._rendered(rendered)
        tokens = self.tokenizer.encode(text)
        offsets = self._offsets(tokens)
        starts: list[int] = []
        content: set[int] = set()
        at = 0
        for shown in rendered:
            at = text.index(shown["content"], at)
            starts.append(len(text[:at].encode()))
            at += len(shown["content"])
        shift = len(rendered) - len(messages)
        for message, start in zip(messages, starts[shift:], strict=True):
            told = message.value if message.role == "user" else ""
            found = message.content.rfind(told) if told else -1
            if found >= 0:
                begin = start + len(message.content[:found].encode())
                content |= set(range(begin, begin + len(told.encode())))
        # a token belongs to the last message that began at or before its end
        ends = [*starts[shift + 1 :], len(text.encode())]
        spans = [sum(1 for s in ends[:-1] if s <= last - 1) for _, last in offsets]
        inside = [any(b in content for b in range(a, z)) for a, z in offsets]
        return EncodedSession(tokens, spans, inside, self._opening(system), system, messages)

    def question(
        self, system: str, question: Question, plain: bool = False, shown: Sequence[Message] = ()
    ) -> EncodedQuestion:
        """shown: earlier turns, whole ones, that are shown again before it and not written again."""
        asked = _with_system(system, [*shown, Message("user", question.content)])
        whole = self._rendered([*asked, {"role": "assistant", "content": question.answer}])
        prompt = self.tokenizer.encode(self._rendered(asked))
        # with what a template puts before every last reply, as the empty thought of Qwen3's
        head = self._rendered([*asked, {"role": "assistant", "content": REPLY}]).split(REPLY)[0]
        opened = self.tokenizer.encode(head)
        answer = self.tokenizer.encode(whole)[len(opened) :]
        end = next((i for i, t in enumerate(answer) if self.tokenizer.ends_reply(t)), len(answer) - 1)
        answer = answer[: end + 1]
        value_at = []
        if question.value:
            begin = len(question.answer[: question.answer.rfind(question.value)].encode())
            span = range(begin, begin + len(question.value.encode()))
            value_at = [i for i, (a, z) in enumerate(self._offsets(answer)) if any(b in span for b in range(a, z))]
        opening = self._opening(system)
        if shown:
            before = self._rendered(_with_system(system, [*shown, Message("user", USER)])).split(USER)[0]
            opening = len(self.tokenizer.encode(before.removesuffix(self._mark(system))))
        return EncodedQuestion(prompt, opened[len(prompt) :], answer, question, opening, value_at, plain, shown)

    def text(self, text: str) -> EncodedQuestion:
        """Ordinary text as a question of plain talk: it goes on from its first tokens."""
        tokens = self.tokenizer.encode(text)
        return EncodedQuestion(
            tokens[:3], tokens[3:4], tokens[4:], Question("", text, "", "talk", "plain"), 0, plain=True
        )

    @cache  # noqa: B019 (an encoder lives as long as its run, and there are few system prompts)
    def _opening(self, system: str) -> int:
        """How many tokens stand before the mark of the first user message, where that is marked as later ones are."""
        mark = self._mark(system)
        before = self._rendered(_with_system(system, [Message("user", USER)])).split(USER)[0]
        return len(self.tokenizer.encode(before.removesuffix(mark))) if mark and before.endswith(mark) else 0

    @cache  # noqa: B019
    def _mark(self, system: str) -> str:
        """What the template puts before a later message of the user."""
        messages = _with_system(system, [Message("user", USER), Message("assistant", REPLY)])
        closed = self._rendered(messages).split(REPLY)[-1]
        between = self._rendered([*messages, {"role": "user", "content": USER}]).split(USER)[1]
        return between.split(REPLY)[-1].removeprefix(closed)

    def _rendered(self, messages: Sequence[dict[str, str]]) -> str:
        # a tokenizer adds none of these marks, and inference strips the first
        return self.tokenizer.template.render(messages, reply=False, bos_token="", eos_token="")

    def _offsets(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        at, found = 0, []
        for token in tokens:
            size = len(self.tokenizer.piece(token))
            found.append((at, at + size))
            at += size
        return found


def _with_system(system: str, messages: Sequence[Message]) -> list[dict[str, str]]:
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": m.role, "content": m.content} for m in messages]
