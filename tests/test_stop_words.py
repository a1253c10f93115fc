"""An answer ends before the first stop word, however the pieces fall."""

from __future__ import annotations

import pytest

from deltamem_cli.session.stop_words import StopWords


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "words", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("ababac", ["abac"], "ab"),
        ("nothing here", ["xyz"], "nothing here"),
        ("ends with th", ["the"], "ends with th"),
        ("anything", ["", "t"], "any"),
        ("plain", [], "plain"),
    ],
)
def test_pieces_of_any_size_end_at_the_same_place(size: int, text: str, words: list[str], shown: str) -> None:
    stop = StopWords(words)
    pieces = [stop.add(text[start : start + size]) for start in range(0, len(text), size)]
    assert "".join([*pieces, stop.finish()]) == shown
    assert stop.cut(text) == shown
    assert (stop.found is not None) == (shown != text)


def test_what_may_become_a_stop_word_is_held_back() -> None:
    stop = StopWords(["###"])
    assert stop.add("a ##") == "a "
    assert stop.add("b") == "##b"
