"""How the benchmarks compare an answer with the right one: token F1, exact match, containment. Plain texts in."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from deltamem_cli.evaluation.errors import EvaluationError

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_ARTICLES_AND = re.compile(r"\b(?:a|an|the|and)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def first_line(answer: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in answer.splitlines() if line.strip()), "")


def f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of two bags of words; 0 where one of them is empty."""
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def plain_words(text: str) -> list[str]:
    """As HotpotQA and the published MemoryAgentBench runs compare: lower case, marks as blanks, no articles."""
    return re.sub(r"[^\w\s]", " ", _ARTICLES.sub(" ", text.lower())).split()


def stems(text: str) -> list[str]:
    """As LoCoMo compares: lower case, marks and articles gone, “and” too, each word reduced by Porter's algorithm.

    Raises EvaluationError when the extra `eval` is not installed.
    """
    text = unicodedata.normalize("NFD", text.replace(",", "")).lower().translate(_PUNCTUATION)
    return [_stem(word) for word in _ARTICLES_AND.sub(" ", text).split()]


def contains(answer: str, wanted: str) -> bool:
    """Whether the words of `wanted` stand in `answer`, in one piece and whole."""
    said, words = plain_words(answer), plain_words(wanted)
    return bool(words) and any(said[i : i + len(words)] == words for i in range(len(said) - len(words) + 1))


def contains_letters(answer: str, wanted: str) -> bool:
    """The same as the published MemoryAgentBench runs have it: also within a word, so 5 is in 55."""
    letters = " ".join(plain_words(wanted))
    return bool(letters) and letters in " ".join(plain_words(answer))


@lru_cache(1 << 16)
def _stem(word: str) -> str:
    stem: str = _stemmer().stem(word)
    return stem


@lru_cache(1)
def _stemmer() -> Any:
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError:
        raise EvaluationError(
            "This benchmark compares the stems of words and needs nltk for it: pip install 'deltamem-cli[eval]'"
        ) from None
    return PorterStemmer()
