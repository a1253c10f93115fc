"""Turns episodes into tokens exactly as inference will feed them; knows nothing of tensors."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

from deltamem_cli.episodes import Episode, Question, Utterance
from deltamem_cli.episodes.episode import last_place
from deltamem_cli.training.tokens import Tokenizer

# stand for what is said, where its place in a rendered template is looked for
USER, REPLY = "\u2402u\u2403", "\u2402r\u2403"


@dataclass
class EncodedSession:
    """spans: the message of each token, as SSW writes; content: whether a token is part of a told value.

    opening: leading tokens, the system prompt's, which belong to no message; system, messages: what was encoded
    """

    tokens: list[int]
    spans: list[int]
    content: list[bool]
    opening: int
    system: str
    messages: Sequence[Utterance]

    @property
    def writes(self) -> list[bool]:
        """Which tokens the memory writes: the user's messages with their marks; replies are read only."""
        return [i >= self.opening and span % 2 == 0 for i, span in enumerate(self.spans)]

    def place_of(self, message: int) -> tuple[int, int]:
        """[begin, end) of a message's tokens."""
        return max(self.opening, bisect_left(self.spans, message)), bisect_right(self.spans, message)


@dataclass
class EncodedQuestion:
    """prompt and head end where the assistant begins to speak, answer ends with the end of the turn.

    head: what is run together with the answer. written: [begin, end) of the tokens of prompt that the memory writes, the
    question with its marks; an answer is read only. value_at: places of the value's tokens in answer; plain: ordinary
    talk that the memory must leave as it is; shown: earlier messages that the prompt begins with
    """

    prompt: list[int]
    head: list[int]
    answer: list[int]
    question: Question
    written: tuple[int, int]
    value_at: list[int] = field(default_factory=list)
    plain: bool = False
    shown: Sequence[Utterance] = ()

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
    """An episode as tokens."""

    sessions: list[EncodedSession]
    questions: list[EncodedQuestion]

    @property
    def written(self) -> list[int]:
        """The tokens of all sessions that the memory writes."""
        return [t for s in self.sessions for t, writes in zip(s.tokens, s.writes, strict=True) if writes]


class Encoder:
    """Turns episodes into tokens in the form of the model's chat template, and marks which ones are written."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def episode(self, episode: Episode) -> EncodedEpisode:
        """All sessions and questions of an episode."""
        return EncodedEpisode(
            [self.session(episode.system, messages) for messages in episode.sessions],
            [self.question(episode.system, q) for q in episode.questions],
        )

    def session(self, system: str, messages: Sequence[Utterance]) -> EncodedSession:
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
        starts = starts[len(rendered) - len(messages) :]
        for message, start in zip(messages, starts, strict=True):
            for fact in message.facts:
                found = last_place(message.content, fact.value)
                begin = start + len(message.content[:found].encode())
                content |= set(range(begin, begin + len(fact.value.encode())))
        # a token belongs to the last message that began at or before its end; the user's begin with their mark
        mark = len(self._mark(system).encode())
        begins = [s - mark if m.role == "user" else s for m, s in zip(messages, starts, strict=True)]
        spans = [sum(1 for s in begins[1:] if s <= last - 1) for _, last in offsets]
        inside = [any(b in content for b in range(a, z)) for a, z in offsets]
        return EncodedSession(tokens, spans, inside, self._opening(system), system, messages)

    def question(
        self, system: str, question: Question, plain: bool = False, shown: Sequence[Utterance] = ()
    ) -> EncodedQuestion:
        """shown: earlier turns, whole ones, that are shown again before it and not written again."""
        asked = _with_system(system, [*shown, Utterance("user", question.content)])
        # with what a template puts before every last reply, as the empty thought of Qwen3's
        opened = self._rendered([*asked, {"role": "assistant", "content": REPLY}]).split(REPLY)[0]
        tokens = self.tokenizer.encode(opened)
        answer, value_at = self._answer(question.answer, question.value)
        begin = self._opening(system)
        if shown:
            before = self._rendered(_with_system(system, [*shown, Utterance("user", USER)])).split(USER)[0]
            begin = len(self.tokenizer.encode(before.removesuffix(self._mark(system))))
        written = (begin, len(tokens) - 1)
        return EncodedQuestion(tokens[:-1], tokens[-1:], answer, question, written, value_at, plain, shown)

    def answered(self, asked: EncodedQuestion, question: Question) -> EncodedQuestion:
        """The same words asked, with the answer of another question."""
        answer, value_at = self._answer(question.answer, question.value)
        return replace(asked, answer=answer, question=question, value_at=value_at)

    @lru_cache(maxsize=65536)  # noqa: B019 (an encoder lives as long as its run)
    def _answer(self, text: str, value: str) -> tuple[list[int], list[int]]:
        """Tokens of a reply with its end, and the places of the value's among them."""
        said = [{"role": "user", "content": USER}]
        opened = self._rendered([*said, {"role": "assistant", "content": REPLY}]).split(REPLY)[0]
        whole = self.tokenizer.encode(self._rendered([*said, {"role": "assistant", "content": text}]))
        answer = whole[len(self.tokenizer.encode(opened)) :]
        end = next((i for i, t in enumerate(answer) if self.tokenizer.ends_reply(t)), len(answer) - 1)
        answer = answer[: end + 1]
        if not value:
            return answer, []
        begin = len(text[: last_place(text, value)].encode())
        span = range(begin, begin + len(value.encode()))
        return answer, [i for i, (a, z) in enumerate(self._offsets(answer)) if any(b in span for b in range(a, z))]

    def text(self, text: str) -> EncodedQuestion:
        """Ordinary text as a question of plain talk: it goes on from its first tokens."""
        tokens = self.tokenizer.encode(text)
        return EncodedQuestion(
            tokens[:3], tokens[3:4], tokens[4:], Question("", text, "", "talk", "plain"), (0, 3), plain=True
        )

    @cache  # noqa: B019 (an encoder lives as long as its run, and there are few system prompts)
    def _opening(self, system: str) -> int:
        """How many tokens stand before the mark of the first user message, where that is marked as later ones are."""
        mark = self._mark(system)
        before = self._rendered(_with_system(system, [Utterance("user", USER)])).split(USER)[0]
        return len(self.tokenizer.encode(before.removesuffix(mark))) if mark and before.endswith(mark) else 0

    @cache  # noqa: B019
    def _mark(self, system: str) -> str:
        """What the template puts before a later message of the user."""
        messages = _with_system(system, [Utterance("user", USER), Utterance("assistant", REPLY)])
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


def _with_system(system: str, messages: Sequence[Utterance]) -> list[dict[str, str]]:
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": m.role, "content": m.content} for m in messages]
