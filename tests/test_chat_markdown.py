"""What a reply says stands on the screen, whatever Markdown would make of it."""

from __future__ import annotations

import io
import random
from collections import Counter

import pytest
from rich.console import Console

from deltamem_cli.terminal.markdown import rendered

PIECES = [
    *(
        "word",
        "x",
        "42",
        "*",
        "**",
        "_",
        "__init__",
        "`",
        "``",
        "```",
        "~~~",
        "#",
        "## ",
        "> ",
        "- ",
        "+ ",
        "1. ",
        "7) ",
    ),
    *(
        "<b>",
        "</b>",
        "<!-- c -->",
        "&amp;",
        "&lt;",
        "\\",
        "\\*",
        "\\d+",
        "[a](http://x 't')",
        "![i](p.png)",
        "<http://x>",
    ),
    *(
        "[r]: http://q",
        " ",
        "  ",
        "    ",
        "\n",
        "\n\n",
        "\t",
        "---",
        "===",
        "~~",
        "$",
        "2*3*4",
        "List<String>",
        "/*",
        "*/",
    ),
    *("(*", "*)", "é", "漢字", "e\u0301", "{", "}", "|", "|---|", "\n| a | b |\n|---|---|\n", "long" * 30),
]
MARKS = set("*`|:-~")  # of emphasis, code and tables; they alone may go


def shown(text: str, width: int = 60) -> str:
    console = Console(width=width, file=io.StringIO())
    lines = rendered(text, console, console.options)
    return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)


def letters(text: str) -> str:
    return "".join(character for character in text if character.isalnum())


@pytest.mark.parametrize(
    "text",
    [
        "Use List<String>, template<typename T> and <b>bold</b> with __init__.",
        "<div class='x'>\n  <!-- why -->\n</div>",
        "2*3*4 = 24, a_b_c, f(*args, **kwargs), int *p",
        "/* a */ b /* c */",
        "(* a *) b (* c *)",
        "*.py and *.txt",
        "&amp; &lt; &#65; &copy;",
        r"\d+\* \`x\` \\ \(a\) C:\new\*",
        '[docs](https://x.y/a?b=1&amp;c "title") ![picture](a.png) <https://x.y>',
        "[name]: https://x.y",
        "one\ntwo\n    three\nfour\\\nfive",
        "# A title of F #",
        "a\n===\nb",
        "~~gone~~",
        "> 5\n> > 6",
        "x\n___",
    ],
)
def test_what_is_no_style_stands_as_it_was_written(text: str) -> None:
    assert shown(text, 100).strip("\n") == text


def test_emphasis_and_code_are_styled() -> None:
    assert shown("a **bold**, *slanted* and `coded` word (**too**); 这是**重要**的。") == (
        "a bold, slanted and coded word (too); 这是重要的。"
    )


def test_marks_of_lists_stay_as_they_were_written() -> None:
    assert shown("- a\n- b\n\n+ c\n\n7. d\n10. e\n\n3) f").split() == [
        *("-", "a", "-", "b", "+", "c", "7.", "d", "10.", "e", "3)", "f")
    ]


def test_what_stands_behind_a_fence_is_shown() -> None:
    assert shown("```python title=x\nprint('<b>')\n```").split() == ["python", "title=x", "print('<b>')"]


@pytest.mark.parametrize(
    "text",
    [
        "| a | b |\n|---|---|\n| " + "words " * 40 + "| " + "letters" * 40 + " |",
        "| a " * 50 + "|\n" + "|---" * 50 + "|\n" + "| 12 " * 50 + "|",
        "| a |\n|---|\n| b | of one cell more |",
        "> " * 300 + "deep",
        "".join("  " * depth + f"- {depth}\n" for depth in range(60)),
        "*a " * 20_000,
    ],
)
def test_tables_and_lists_that_do_not_fit_lose_nothing(text: str) -> None:
    assert not {mark: n for mark, n in missing(text, 60).items() if mark not in MARKS}


@pytest.mark.parametrize("seed", range(300))
def test_every_word_and_symbol_of_a_random_reply_stands_on_the_screen(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 60)))
    width = rng.choice([20, 40, 80, 120])
    assert set(missing(text, width)) <= MARKS
    if "|" not in text:
        assert letters(shown(text, width)) == letters(text)


def missing(text: str, width: int) -> Counter[str]:
    return Counter("".join(text.split())) - Counter(shown(text, width))
