"""Markdown for a reader who must not miss anything: it styles a reply, and every word and symbol of it stays.

What is taken away are the marks of emphasis and code (* and `), the fences of code and the lines of tables. Links, HTML,
entities, escapes and numbers stand as they were written, as a reply is often about them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline import emphasis as emphasis_rule
from markdown_it.token import Token
from rich import markdown as rich_markdown
from rich.console import Console, ConsoleOptions, RenderResult
from rich.containers import Renderables
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

_ESCAPABLE = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_OPENING = frozenset("([{<„‘«¿¡")
_CLOSING = frozenset(")]}>”’»!?.,:;。、，：；！？」』）")
_EITHER = frozenset("\"'“-–—…|")
_LONGEST = 20_000  # characters; some marks cost the square of their number
_TAKEN_AWAY = frozenset("*`~|:-")  # of emphasis, code, fences and the line below a table's head


def rendered(text: str, console: Console, options: ConsoleOptions) -> list[list[Segment]]:
    """The lines of a reply, or of a part of it, as they are shown: plain when something would be missing otherwise."""
    if len(text) < _LONGEST:
        lines = console.render_lines(_Markdown(text), options, pad=False)
        shown = Counter(segment.text for line in lines for segment in line if not segment.control)
        if not _symbols({text: 1}) - _symbols(shown):  # else a table is too wide, or lists are too deep
            return lines
    return console.render_lines(Text(text.strip("\n")), options, pad=False)


def _symbols(texts: Mapping[str, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for text, times in texts.items():
        for symbol, number in Counter(text).items():
            if not symbol.isspace() and symbol not in _TAKEN_AWAY:
                found[symbol] += times * number
    return found


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.disable(["reference", "lheading", "entity", "autolink", "link", "image"])
    parser.inline.ruler.at("newline", _newline)
    parser.inline.ruler.at("escape", _escape)
    parser.inline.ruler.at("emphasis", _emphasis)
    parser.core.ruler.before("inline", "heading_marks", _heading_marks)
    return parser


def _newline(state: StateInline, silent: bool) -> bool:
    """Every line of a reply is one; what it is indented by stays."""
    if state.src[state.pos] != "\n":
        return False
    if not silent:
        state.pending = state.pending.rstrip(" ")
        state.push("hardbreak", "br", 0)
    state.pos += 1
    return True


def _escape(state: StateInline, silent: bool) -> bool:
    """A backslash stays, and what it escapes is no mark."""
    pair = state.src[state.pos : min(state.pos + 2, state.posMax)]
    if len(pair) < 2 or pair[0] != "\\" or pair[1] not in _ESCAPABLE:
        return False
    if not silent:
        state.pending += pair
    state.pos += 2
    return True


def _emphasis(state: StateInline, silent: bool) -> bool:
    """Stars at the edge of words; those of 2*3*4, /* … */ and *.py stay, and so does every _ (as of __init__)."""
    if state.src[state.pos] != "*" or silent:
        return False
    end = state.pos + state.scanDelims(state.pos, True).length
    before = state.src[state.pos - 1] if state.pos else " "
    after = state.src[end] if end < state.posMax else " "
    opens = _outside(before, _OPENING) and _inside(after, _CLOSING)
    closes = _outside(after, _CLOSING) and _inside(before, _OPENING)
    if opens or closes:
        return emphasis_rule.tokenize(state, silent)
    state.pending += state.src[state.pos : end]
    state.pos = end
    return True


def _outside(character: str, allowed: frozenset[str]) -> bool:
    # Chinese and Japanese have no spaces between words
    wide = unicodedata.east_asian_width(character) in "WF"
    return character.isspace() or character in allowed or character in _EITHER or wide


def _inside(character: str, refused: frozenset[str]) -> bool:
    return not character.isspace() and character not in refused and character != "/"


def _heading_marks(state: StateCore) -> None:
    lines = state.src.split("\n")
    for token, inside in zip(state.tokens, state.tokens[1:], strict=False):
        if token.type == "heading_open" and token.map:
            closing = re.search(r"[ \t]#+[ \t]*$", lines[token.map[0]]) if inside.content else None
            inside.content = f"{token.markup} {inside.content}{closing[0] if closing else ''}".rstrip()


class _Heading(rich_markdown.Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.justify = "left"
        yield text


class _CodeBlock(rich_markdown.CodeBlock):
    """With what stands behind the fence, which is more than a language at times."""

    info = ""

    @classmethod
    def create(cls, markdown: rich_markdown.Markdown, token: Token) -> _CodeBlock:
        info = token.info.strip()
        block = cls(info.partition(" ")[0] or "text", markdown.code_theme)
        block.info = info
        return block

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.info:
            yield Text(self.info, style="dim")
        yield from super().__rich_console__(console, options)


class _BlockQuote(rich_markdown.BlockQuote):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _marked("> ", self.elements, "markdown.block_quote", console, options)


class _ListElement(rich_markdown.ListElement):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        items = [item for item in self.items if isinstance(item, _ListItem)]
        width = max((len(item.mark) for item in items), default=0)
        for item in items:
            mark = f" {item.mark:>{width}} "
            yield from _marked(mark, item.elements, "markdown.item.bullet", console, options)


class _ListItem(rich_markdown.ListItem):
    """With the mark that was written: a minus may be one, and a number has its meaning."""

    mark = ""

    @classmethod
    def create(cls, markdown: rich_markdown.Markdown, token: Token) -> _ListItem:
        item = cls()
        item.mark = token.info + token.markup
        return item


def _marked(
    mark: str, elements: Renderables, style_name: str, console: Console, options: ConsoleOptions
) -> RenderResult:
    """`elements` behind `mark`: a quote's on every line, a list's on the first."""
    style = console.get_style(style_name, default="none")
    inner = options.update(width=max(1, options.max_width - len(mark)))
    repeated = mark if mark.startswith(">") else " " * len(mark)
    for number, line in enumerate(console.render_lines(elements, inner)):
        yield Segment(repeated if number else mark, style)
        yield from line
        yield Segment.line()


class _TableElement(rich_markdown.TableElement):
    """Cells are folded where rich would cut them."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            if isinstance(table, Table):
                for column in table.columns:
                    column.overflow = "fold"
            yield table


class _Markdown(rich_markdown.Markdown):
    elements: ClassVar[dict[str, type[rich_markdown.MarkdownElement]]] = {
        **rich_markdown.Markdown.elements,
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
        "blockquote_open": _BlockQuote,
        "bullet_list_open": _ListElement,
        "ordered_list_open": _ListElement,
        "list_item_open": _ListItem,
        "table_open": _TableElement,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = _parser().parse(text)
