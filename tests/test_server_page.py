"""The page of a real server, used in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import stored
from chat_support import as_if_tried, dmem, environment

pytest.importorskip("starlette", reason="the extra serve is not installed")

from deltamem_cli.server import page as page_module
from deltamem_cli.store import locks, profiles, turns
from deltamem_cli.store.database import Store

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MARKUP = '<img src=x onerror="document.title=1">'
CODE = f"Look:\n```python\nif a < b:\n    print('{MARKUP}')\n```\nand ~~~ is none.\n\n    {MARKUP}"


@contextmanager
def serving(home: Path, tiny_model: Any, tiny_adapter: Any, *arguments: str, **options: str) -> Iterator[str]:
    """A server with a tiny model, or with the starter where there is none: its address."""
    home.mkdir(exist_ok=True)
    model: list[object] = []
    if tiny_model:
        path = tiny_model("qwen3")
        as_if_tried(path)
        model = ["-m", path, "--adapter", tiny_adapter(path)]
    env = environment(home, **{"DMEM_OPTIONS_MAX_TOKENS": "8", "DMEM_OPTIONS_TEMPERATURE": "0", **options})
    command = dmem("serve", *model, "--port", "0", "--threads", "1", *arguments)
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        told = process.stderr.readline()
        found = re.search(r"http://\S+", told)
        try:
            assert found, told
            yield found[0] + "/"
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, tiny_adapter: Any) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("home")
    with serving(folder, tiny_model, tiny_adapter) as address:
        yield folder, address


@pytest.fixture
def server(running: tuple[Path, str]) -> str:
    """The address of one server for many tests, with no conversations."""
    with Store.open(running[0] / "memory.db") as store:
        for profile in profiles.all_of(store):
            profiles.delete(store, profile.name)
    return running[1]


@pytest.fixture
def place(running: tuple[Path, str], server: str) -> Path:
    """Its folder."""
    return running[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed, so the page is not tried in a browser")
    with playwright.sync_playwright() as running:
        # as root, which tests in containers are, it runs without a sandbox alone
        arguments = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
        made = running.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield made
        made.close()


class User:
    """Somebody at the page. errors: what the browser's console complains of."""

    def __init__(self, page: Any) -> None:
        self.page, self.errors = page, []
        page.set_default_timeout(30_000)
        page.on("console", lambda told: self.errors.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.settled()

    def say(self, text: str) -> None:
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        self.settled()

    def settled(self) -> None:
        self.page.wait_for_selector("#memory[aria-busy=false]", state="attached")

    def shown(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(f"{selector}:visible").all_inner_texts()]

    def focused(self) -> str:
        return str(self.page.evaluate("() => document.activeElement.id"))


@pytest.fixture
def user(browser: Any) -> Iterator[User]:
    context = browser.new_context(viewport={"width": 1300, "height": 850})
    made = User(context.new_page())
    yield made
    context.close()


def questions(home: Path) -> list[str]:
    with Store.open(home / "memory.db") as store:
        found = store.rows("SELECT id FROM conversations")
        return [turn.messages[0].text for row in found for turn in turns.all_of(store, row["id"])]


def asked(address: str, **headers: str) -> Any:
    return urllib.request.urlopen(urllib.request.Request(address, headers=headers))


def test_a_browser_gets_the_page_and_other_clients_ollamas_line(server: str) -> None:
    page = asked(server, Accept="text/html,*/*;q=0.8")
    assert page.headers["content-type"].startswith("text/html")
    assert b"<title>dmem</title>" in page.read()
    assert asked(server).read() == asked(server, Accept="*/*").read() == b"Ollama is running"
    for name in ("script.js", "style.css"):
        assert "default-src 'none'" in asked(f"{server}page/{name}").headers["content-security-policy"]
    for name in ("__init__.py", "index.html", "..%2fapp.py"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            asked(f"{server}page/{name}")


def test_nothing_of_the_page_comes_from_elsewhere_or_is_made_markup() -> None:
    texts = {path.name: path.read_text("utf-8") for path in page_module.FOLDER.glob("*.*") if path.suffix != ".py"}
    assert set(texts) == {"index.html", "style.css", "script.js"}
    assert not re.search(r"https?://|//[a-z]+\.", "".join(texts.values()).replace("// ", ""))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", texts["script.js"])
    assert not re.search(r"<script(?! type=\"module\" src)|<style|\son\w+=|\sstyle=", texts["index.html"])


def test_what_is_said_is_answered_kept_and_drawn_turn_by_turn(server: str, user: User, place: Path) -> None:
    user.open(server)
    assert user.shown("#memory-note") == ["Nothing is remembered yet."]
    user.say("My dog is Rex.")
    first = user.page.get_attribute("#picture", "src")
    assert user.shown(".message h3") == ["You", "Answer"]
    told = user.page.text_content("#status")
    assert told.startswith("Answered: "), "screen readers are told"
    user.say("And now?")
    assert questions(place) == ["My dog is Rex.", "And now?"]
    assert user.shown("#history .words") == ["And now?", "My dog is Rex."]
    assert user.page.get_attribute("#picture", "src") != first
    assert re.fullmatch(r"Norm \S+ after turn 2, which changed it by \S+\.", user.shown("#caption")[0])
    assert user.page.evaluate("() => document.getElementById('picture').naturalWidth") > 100
    assert user.shown("#list button")[0].startswith("My dog is Rex.")
    user.page.click("#history button:text('Change') >> nth=0")
    user.settled()
    assert user.shown("#now")
    assert user.shown("#caption")[0].startswith("Turn 2 changed the memory by")
    user.page.reload()
    user.settled()
    assert len(user.shown(".message")) == 4, "the address names the conversation"
    assert not user.errors


def test_undo_and_forget_take_turns_out_of_page_and_memory(server: str, user: User, place: Path) -> None:
    user.open(server)
    for text in ("One.", "Two.", "Three."):
        user.say(text)
    user.page.click("#undo")
    assert user.shown("#dialog-title") == ["Undo turn 3?"]
    user.page.keyboard.press("Escape")
    assert len(questions(place)) == 3
    user.page.click("#undo")
    user.page.click("#dialog-yes")
    user.page.wait_for_selector("button[aria-label='Forget turn 3']", state="detached")
    user.settled()
    assert questions(place) == ["One.", "Two."]
    assert user.page.input_value("#question") == "Three.", "it can be said in other words"
    user.page.click("button[aria-label='Forget turn 1']")
    assert "1 later turn will be replayed" in user.shown("#dialog-text")[0]
    user.page.click("#dialog-yes")
    user.page.wait_for_selector("button[aria-label='Forget turn 1']", state="detached")
    user.settled()
    assert questions(place) == ["Two."]
    user.say("Four.")
    assert user.shown("#history .words") == ["Four.", "Two."]
    assert questions(place) == ["Two.", "Four."]
    assert not user.errors


@pytest.mark.parametrize("control", ["#undo", "button[aria-label='Forget turn 2']"])
def test_a_turn_that_became_another_one_while_the_page_asked_stays(
    server: str, user: User, place: Path, control: str
) -> None:
    user.open(server)
    for text in ("One.", "Two."):
        user.say(text)
    user.page.click(control)
    with Store.open(place / "memory.db") as store:
        (row,) = store.rows("SELECT id FROM conversations")
    for path, body in (
        ("/v1/memory/undo", {"conversation": row["id"]}),
        ("/v1/chat/completions", {"conversation": row["id"], "messages": [{"role": "user", "content": "Other."}]}),
    ):
        urllib.request.urlopen(urllib.request.Request(server.rstrip("/") + path, json.dumps(body).encode())).read()
    user.page.click("#dialog-yes")
    user.page.wait_for_selector("text=has gone on meanwhile")
    user.settled()
    assert questions(place) == ["One.", "Other."]
    assert user.shown("#history .words") == ["Other.", "One."], "and the page shows what is there now"
    user.page.click(control)
    user.page.click("#dialog-yes")
    user.page.wait_for_selector("button[aria-label='Forget turn 2']", state="detached")
    user.settled()
    assert questions(place) == ["One."]


def test_a_temporary_chat_is_kept_nowhere(server: str, user: User, place: Path) -> None:
    user.open(server)
    user.say("Kept.")
    user.page.check("#temporary")
    assert user.shown(".message") == []
    user.say("Unkept.")
    user.say("Unkept too.")
    assert len(user.shown(".message")) == 4
    assert user.shown("#memory-note") == ["A temporary chat reads and writes no memory."]
    assert not user.shown("#figure") and not user.shown("#undo")
    user.page.uncheck("#temporary")
    user.settled()
    assert len(user.shown(".message")) == 2
    assert questions(place) == ["Kept."]
    assert b"Unkept" not in stored.raw_bytes(place / "memory.db")


def test_what_is_read_only_is_shown_as_not_kept_and_is_not(server: str, user: User, place: Path) -> None:
    user.open(server)
    user.say("Kept.")
    user.page.check("#read-only")
    user.say("Unkept.")
    user.say("Unkept too.")
    assert user.shown(".message h3") == ["You", "Answer", *["You", "Answer, not kept"] * 2]
    user.page.uncheck("#read-only")
    user.say("Kept too.")
    assert questions(place) == ["Kept.", "Kept too."]
    assert not user.errors


def test_escape_stops_a_reply_and_what_was_said_of_it_stays(home: Path, user: User) -> None:
    long = {"DMEM_OPTIONS_MAX_TOKENS": "1000", "DMEM_OPTIONS_LOOP_GUARD": "0"}
    with serving(home, None, None, **long) as address:
        user.open(address)
        user.page.fill("#question", "Write a long story about the sea.")
        user.page.press("#question", "Enter")
        user.page.wait_for_selector(".message.assistant .body .text")
        assert user.shown("#stop") and not user.shown("#send")
        assert user.shown(".message h3") == ["You", "Answer"]
        user.page.keyboard.press("Escape")
        user.page.wait_for_selector("#history li")
        user.page.wait_for_selector(".message h3:text-is('Answer, interrupted')")
        with Store.open(home / "memory.db") as store:
            id_ = store.rows("SELECT id FROM conversations")[0]["id"]
            (turn,) = turns.all_of(store, id_)
        assert turn.interrupted
        user.page.reload()
        user.settled()
        shown = "".join(user.page.locator(".message.assistant .body").all_text_contents())
        assert re.sub(r"\W", "", shown) == re.sub(r"\W", "", turn.messages[1].text)


def test_a_text_is_never_markup_and_fences_hold_code(server: str, user: User, place: Path) -> None:
    with Store.open(place / "memory.db") as store:
        made = stored.conversation(store, 0, profile="default")
        turns.commit(store, made, stored.exchange(1, user=MARKUP, reply=CODE))
    user.open(f"{server}#{made.id}")
    user.page.wait_for_selector(".message pre")
    assert user.shown(".message pre") == [f"if a < b:\n    print('{MARKUP}')"]
    assert user.shown(".message .text") == [MARKUP, "Look:", f"and ~~~ is none.\n\n    {MARKUP}"]
    assert user.shown("#title") == [MARKUP]
    assert user.page.locator("main img, nav img").count() == 0
    user.page.set_viewport_size({"width": 400, "height": 700})
    assert user.page.evaluate("() => document.documentElement.scrollWidth") == 400
    assert not user.errors


def test_conversations_are_begun_opened_renamed_and_deleted(server: str, user: User, place: Path) -> None:
    user.open(server)
    user.say("First.")
    user.page.click("#new")
    assert user.focused() == "question"
    user.say("Second.")
    assert [text.split("\n")[0] for text in user.shown("#list button")] == ["Second.", "First."]
    user.page.click("#list button >> nth=1")
    user.settled()
    assert user.shown(".message .text")[0] == "First."
    user.page.click("#rename")
    user.page.fill("#dialog-field", "A title")
    user.page.keyboard.press("Enter")
    user.page.wait_for_selector("#title:text('A title')")
    user.settled()
    assert user.page.get_attribute("#list button:has-text('A title')", "aria-current") == "true"
    user.page.click("#delete")
    user.page.click("#dialog-yes")
    user.page.wait_for_selector("#title:text('New conversation')")
    user.settled()
    assert questions(place) == ["Second."]
    assert not user.errors


def test_a_new_conversation_belongs_to_the_chosen_profile(server: str, user: User, place: Path) -> None:
    with Store.open(place / "memory.db") as store:
        profiles.create(store, "büro")
    user.open(server)
    user.page.select_option("#profile", "büro")
    user.settled()
    user.say("Hello.")
    with Store.open(place / "memory.db") as store:
        assert store.rows("SELECT name FROM profiles JOIN conversations ON profiles.id = profile_id") == [
            {"name": "büro"}
        ]
    assert len(user.shown("#list button")) == 1


def test_a_server_that_wants_a_key_is_given_it_once(home: Path, tiny_model: Any, tiny_adapter: Any, user: User) -> None:
    with serving(home, tiny_model, tiny_adapter, "--api-key", "secret=work") as address:
        user.page.goto(address)
        user.page.fill("#dialog-field", "wrong")
        user.page.keyboard.press("Enter")
        user.page.wait_for_selector("#dialog-text:text('not one of')")
        user.page.fill("#dialog-field", "secret")
        user.page.keyboard.press("Enter")
        user.page.locator("#profile option").first.wait_for(state="attached")
        assert user.shown("#profile") == ["work"]
        user.say("Hello.")
        user.page.check("#temporary")
        user.say("Unkept.")
        assert questions(home) == ["Hello."]
        user.page.reload()
        user.settled()
        assert user.shown("#dialog") == []
        assert len(user.shown("#list button")) == 1


def test_what_goes_wrong_is_said_in_a_sentence(server: str, user: User, place: Path) -> None:
    user.open(server)
    user.say("One.")
    with Store.open(place / "memory.db") as other:
        id_ = other.rows("SELECT id FROM conversations")[0]["id"]
        locks.hold(other, id_)
        user.say("Two.")
        assert "is in use by" in user.shown("#problem")[0]
        assert user.page.input_value("#question") == "Two."
    user.say("Two.")
    assert not user.shown("#problem")
    user.page.route("**/v1/**", lambda route: route.abort())
    user.say("Three.")
    assert user.shown("#problem") == ["The server does not answer: see whether dmem serve is still running."]
    assert user.page.input_value("#question") == "Three."
    user.page.set_viewport_size({"width": 400, "height": 800})
    user.page.click("[data-opens=memory]")
    user.page.click("button[aria-label='Forget turn 1']")
    user.page.click("#dialog-yes")
    user.page.wait_for_selector("#memory", state="hidden")
    assert user.shown("#problem"), "it would stand behind the pane"


def test_the_keyboard_is_enough_and_panes_come_over_a_narrow_page(server: str, user: User) -> None:
    user.page.set_viewport_size({"width": 400, "height": 800})
    user.open(server)
    assert user.focused() == "question"
    user.page.keyboard.type("One")
    user.page.keyboard.press("Shift+Enter")
    user.page.keyboard.type("two")
    user.page.keyboard.press("Enter")
    user.settled()
    assert user.shown(".message .text")[0] == "One\ntwo"
    for pane in ("conversations", "memory"):
        assert not user.page.is_visible(f"#{pane}")
        user.page.focus(f"[data-opens={pane}]")
        user.page.keyboard.press("Enter")
        assert user.page.is_visible(f"#{pane}")
        assert user.focused() == pane
        assert user.page.get_attribute(f"[data-opens={pane}]", "aria-expanded") == "true"
        user.page.keyboard.press("Escape")
        assert not user.page.is_visible(f"#{pane}")
        assert user.page.evaluate("() => document.activeElement.dataset.opens") == pane
    assert user.page.evaluate("() => document.documentElement.scrollWidth") == 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(server: str, user: User, scheme: str) -> None:
    user.page.emulate_media(color_scheme=scheme)
    user.open(server)
    user.say("Hello.")
    pairs = user.page.evaluate(
        """() => ["body", ".pale", "#send"].map((selector) => {
            const one = document.querySelector(selector);
            let behind = one;
            while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
            return [getComputedStyle(one).color, getComputedStyle(behind).backgroundColor];
        })"""
    )
    assert all(contrast(*pair) >= 4.5 for pair in pairs), pairs


def contrast(one: str, other: str) -> float:
    """As WCAG reckons it."""

    def light(colour: str) -> float:
        shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_control_has_a_name(server: str, user: User) -> None:
    user.open(server)
    user.say("Hello.")
    nameless = user.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, meter, img")]
            .filter((one) => one.checkVisibility())
            .filter((one) => !(one.ariaLabel || one.alt || one.labels?.length || one.textContent.trim()))
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    assert not user.errors
