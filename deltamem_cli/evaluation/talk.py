"""Tells the hand-written conversations, with the model's own replies, and asks about them in other sessions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deltamem_cli.evaluation import report as r
from deltamem_cli.evaluation.kept_answers import Answered, KeptAnswers
from deltamem_cli.evaluation.respondent import Respondent
from deltamem_cli.evaluation.shares import Share
from deltamem_cli.evaluation.talk_cases import CATEGORIES, NEVER, Asked, Conversation, is_over, is_right
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.thinking import Thought

REPLY_TOKENS = 80  # of the model's own replies while it is told
ANSWER_TOKENS = 60  # two sentences count
EVERYTHING = 1_000_000  # tokens: more than fit
MODES = (r.NONE, r.ZERO, r.DONOR, r.MEMORY, r.REPLAY, r.CONTEXT)
ALL_TOLD = "told"  # the column of all categories but what was never told


@dataclass(frozen=True)
class Answer(Answered):
    """One answer, and whether it was right."""

    right: bool


class Answers(KeptAnswers[Answer]):
    """What was measured, and the shares of what was right."""

    def __init__(self, about: dict[str, Any], path: Path | None = None) -> None:
        """Raises EvaluationError for a file that can't be gone on with."""
        super().__init__(about, Answer, path)

    def share(self, mode: str, category: str) -> Share:
        """category: one of CATEGORIES, or ALL_TOLD"""
        return Share.of(a.right for a in self._of(mode, category))

    def _of(self, mode: str, category: str) -> list[Answer]:
        def wanted(a: Answer) -> bool:
            return a.category != NEVER if category == ALL_TOLD else a.category == category

        return [a for a in self.records if a.mode == mode and wanted(a)]

    def document(self) -> dict[str, Any]:
        """Everything as one JSON document."""
        columns = (ALL_TOLD, *CATEGORIES)
        modes = [m for m in MODES if any(a.mode == m for a in self.records)]

        def each(of: Any) -> dict[str, Any]:
            return {m: {c: of(self.share(m, c)) for c in columns if self.share(m, c).n} for m in modes}

        return {
            **self.about,
            "right": each(lambda s: round(s.value, 4)),
            "intervals": each(lambda s: [round(end, 4) for end in s.interval]),
            "questions": each(lambda s: s.n),
            "tokens": {m: round(self.tokens(m), 1) for m in modes},
            "answers": [asdict(a) for a in self.records],
        }


def measure(subject: Respondent, chosen: Sequence[Conversation], answers: Answers) -> Iterator[str]:
    """Adds to `answers` what they lack. Yields after each conversation, with its name."""
    donor: tuple[Conversation, str] | None = None
    for conversation in chosen:
        missing = {m: [q for q in conversation.asked if not answers.has(conversation.id, m, q.ask)] for m in MODES}
        if any(missing.values()):
            cid = _tell(subject, conversation)
            if donor is None:
                other = next((c for c in reversed(chosen) if c.id != conversation.id), conversation)
                donor = other, _tell(subject, other)
            for mode, questions in missing.items():
                asked_of = donor[1] if mode == r.DONOR else None if mode in (r.ZERO, r.NONE) else cid
                _ask(subject, conversation, mode, questions, asked_of, answers)
            donor = conversation, cid
        yield conversation.id


def _tell(subject: Respondent, conversation: Conversation) -> str:
    with subject.session(None, max_tokens=REPLY_TOKENS) as session:
        for said in (*conversation.told, *conversation.talk):
            for _ in session.ask(said):
                pass
        return session.conversation.id


def _ask(
    subject: Respondent,
    conversation: Conversation,
    mode: str,
    questions: Sequence[Asked],
    cid: str | None,
    answers: Answers,
) -> None:
    if not questions:
        return
    replayed = {r.REPLAY: subject.with_memory.engine.n_ctx_seq // 4, r.CONTEXT: EVERYTHING}.get(mode, 0)
    memory = mode not in (r.NONE, r.CONTEXT)
    with subject.session(
        cid, memory=memory, replay_tokens=replayed, read_only=True, max_tokens=ANSWER_TOKENS
    ) as session:
        for question in questions:
            text, tokens = _answer(session, question)
            right = is_right(text, question)
            answers.add(Answer(conversation.id, conversation.category, mode, question.ask, text, tokens, right))


def _answer(session: ChatSession, question: Asked) -> tuple[str, int]:
    """Its text and the tokens in sight; afterwards the session is as if nothing had been asked."""
    text = ""
    for piece in session.ask(question.ask):
        if not isinstance(piece, Thought):
            text += piece
        if is_over(text):
            session.stop()
    tokens, _ = session.context_filled
    session.undo()
    return text.strip(), tokens
