"""Search: words as ever, and what stands in texts whose words no spaces part."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import stored

from deltamem_cli.store import conversations, profiles, search, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.excerpt import MATCH_BEGIN, MATCH_END, excerpt, unmarked
from deltamem_cli.store.reset import reset


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def store(path: Path) -> Store:
    return Store.open(path)


def said(store: Store, *texts: str) -> str:
    """A conversation in which these texts are said, one a turn."""
    talk = conversations.new(profiles.ensure(store, "work"))
    for number, text in enumerate(texts, 1):
        turns.commit(store, talk, stored.exchange(number, user=text))
    return talk.id


def found(store: Store, words: str) -> list[int]:
    return sorted(hit.turn for hit in search.search(store, words))


@pytest.mark.parametrize(
    "text, words",
    [
        ("我住在里斯本，我的狗叫雷克斯 🙂", ["里斯本", "雷克斯", "狗", "里斯本？", "里斯 雷克", "🙂", '"我的狗"']),
        ("東京タワーへ行きました。", ["タワー", "行きました", "京", "へ"]),
        ("ผมชื่อสมชาย", ["สมชาย", "ชื่อ"]),
        ("ຂ້ອຍຊື່ສົມ ខ្ញុំឈ្មោះសុខ ကျွန်တော်", ["ສົມ", "សុខ", "တော်"]),
        ("저는 서울에서 살아요", ["서울", "살아"]),
        ("我用Python3写代码，2024年3月在AI公司", ["Python3", "python3", "2024", "3", "AI", "写代码", "Python3写"]),
        ("深圳的ＡＢＣ公司 and 𠮷野家", ["ＡＢＣ", "𠮷野", "公司 and"]),
        ("she said 👍🏽 ❤️‍🔥 and 👨‍👩‍👧 in 🇵🇹", ["👍", "👍🏽", "❤️", "❤️‍🔥", "👨‍👩‍👧", "🇵🇹", "said 👍", "🔥 in"]),
        ("הספר של אבא وكتاب الولد", ["ספר", "אבא", "كتاب"]),
        ("मेरा नाम राजेश है", ["राजेश", "नाम", "मेरा है"]),
    ],
)
def test_any_part_is_found_where_no_spaces_part_the_words(store: Store, text: str, words: list[str]) -> None:
    said(store, text, "nothing of it")
    for wanted in words:
        assert found(store, wanted) == [1], wanted


def test_what_is_not_there_is_not_found(store: Store) -> None:
    said(store, "我住在里斯本 🙂", "我用Pythonic写")
    for words in ("斯里本", "里斯本 波尔图", "🙁", "python", "本🙂", "Pyth", "里斯本 lisbon"):
        assert found(store, words) == [], words


def test_signs_that_no_index_has_are_found_when_they_alone_are_asked_for(store: Store) -> None:
    said(store, "a → b", "if (a == b) {", "costs €5 (100%_x)")
    assert found(store, "→") == [1] and found(store, "==") == [2] and found(store, "€") == [3]
    assert found(store, "%_") == [3] and found(store, "== (") == [2] and found(store, '"') == [] == found(store, "\\")
    assert found(store, "costs -") == [3]  # beside words they count for nothing, as in other searches


def test_one_letter_in_two_forms_is_one(store: Store) -> None:
    text = "ガラス 한국어"
    said(store, text, unicodedata.normalize("NFD", text))
    for words in ("ガラス", "ガ", "한국"):
        assert found(store, words) == found(store, unicodedata.normalize("NFD", words)) == [1, 2]


def test_words_are_ranked_as_ever_and_parts_of_other_texts_come_behind_them(store: Store) -> None:
    said(store, "我用python写", "python and many other words about something else", "python", "pythons")
    assert [hit.turn for hit in search.search(store, "python")] == [3, 2, 1]
    assert [hit.turn for hit in search.search(store, "python", limit=1)] == [3]


def test_english_texts_are_not_in_the_second_index(store: Store) -> None:
    said(store, "Plain words — “quoted”, naïve, Ελλάδα, Москва, Tiếng Việt, ™ and 5 €.", "里斯本")
    rows = store.rows("SELECT text FROM messages_unspaced")
    assert [row["text"] for row in rows] == ["里斯本"]


def test_both_indexes_are_as_they_would_be_made_anew(store: Store) -> None:
    talk = said(store, "第一个问题", "second", "第三个问题 🙂")
    with store.transaction():
        store.execute("UPDATE messages SET text = 'now english' WHERE text = '第一个问题'")
        store.execute("UPDATE messages SET text = '现在是中文' WHERE text = 'second'")
    assert (found(store, "问题"), found(store, "english"), found(store, "现在是")) == ([3], [1], [2])
    turns.undo(store, talk)
    assert found(store, "第三个") == found(store, "🙂") == []
    with store.transaction():  # raises when an index and its texts differ
        for index in ("messages_fts", "messages_trigram"):
            store.execute(f"INSERT INTO {index} ({index}, rank) VALUES ('integrity-check', 1)")


def test_deleted_pieces_are_in_no_byte_of_the_files(path: Path, store: Store) -> None:
    words = ["雷克斯", "里斯本", "สมช"]
    said(store, *(f"{word}{'的一些其他的话' * 20}{number}" for number in range(12) for word in words), "别的")
    talk = conversations.all_of(store)[0]
    turns.undo(store, talk.id, turns.last_number(store, talk.id) - 1)
    assert any(word.encode() in stored.raw_bytes(path) for word in words[1:])
    store.scrub()
    assert not any(word.encode() in stored.raw_bytes(path) for word in words[1:])
    assert found(store, words[0]) == [1]
    reset(store, [talk], transcript=True)
    store.scrub()
    assert words[0].encode() not in stored.raw_bytes(path)


def test_excerpt_shows_the_match_in_a_long_text(store: Store) -> None:
    said(store, "前" * 3000 + "里斯本" + "后" * 3000, "word " * 800 + "the café here " + "word " * 800)
    for words, match in (
        ("里斯本", "里斯本"),
        ("前里斯", "前里斯"),
        ("里", "里"),
        ("cafe", "café"),
        ('"the cafe"', "the café"),
    ):
        (hit,) = search.search(store, words)
        text, spans = unmarked(hit.excerpt)
        assert [text[start:end] for start, end in spans] == [match]
        assert len(text) < 200 and text[0] == text[-1] == "…"


def test_excerpt_marks_every_match_once_and_prefers_the_part_with_most() -> None:
    text = "one " + "and so on " * 40 + "one two three"
    places = [(0, 3), *((text.rindex(word), text.rindex(word) + len(word)) for word in ("one", "two", "three", "one"))]
    shown = excerpt(text, places)
    assert (
        shown.endswith("\x02one\x03 \x02two\x03 \x02three\x03") and shown.startswith("…") and shown.count("\x02") == 3
    )
    assert excerpt("abcd", [(1, 3), (0, 2)]) == f"{MATCH_BEGIN}abc{MATCH_END}d"
    assert excerpt("", []) == "" and excerpt("x" * 500, []).endswith("x…")


@pytest.mark.parametrize("character", ["e\u0301", "नि", "a", "里"])
def test_excerpt_cuts_no_letter_from_its_accent(character: str) -> None:
    size = len(character)
    for before in range(60, 80):
        text = character * before + "X" + character * 200
        shown, _ = unmarked(excerpt(text, [(before * size, before * size + 1)]))
        inside = shown.strip("…").replace("X", "")
        assert "X" in shown and inside[:1] == character[:1]
        assert not unicodedata.combining(shown.strip("…")[0])
