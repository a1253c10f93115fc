"""Which memory a request has: apart from all others, over a restart, back to before an edit, left alone by side requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai")

from server_support import Server

TITLE = """### Task:
Generate a concise, 3-5 word title with an emoji summarizing the chat history.
### Chat History:
<chat_history>
USER: {question}
ASSISTANT: {answer}
</chat_history>"""


class Client:
    """A client as most are: it sends all of its chat each time. headers: what tells its conversation."""

    def __init__(self, server: Server, **headers: str) -> None:
        self._openai = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self._model = server.model
        self.messages: list[dict[str, str]] = []
        self.said: Any = None

    def say(self, text: str, **more: Any) -> str:
        self.messages.append({"role": "user", "content": text})
        self.said = self._openai.chat.completions.create(
            model=self._model, messages=self.messages, extra_headers=self._headers, **more
        )
        answer = str(self.said.choices[0].message.content)
        self.messages.append({"role": "assistant", "content": answer})
        return answer

    def back_to(self, turn: int) -> None:
        """Takes out what followed turn `turn`, as an edit or a new try does."""
        del self.messages[2 * turn :]

    @property
    def turn(self) -> str:
        return str(self.said.metadata["turn"])

    @property
    def conversation(self) -> str:
        return str(self.said.metadata["conversation"])


def chat(server: Server, name: str, *texts: str) -> Client:
    client = Client(server, X_OpenWebUI_Chat_Id=name)
    for text in texts:
        client.say(text)
    return client


def test_two_conversations_side_by_side_are_what_each_is_alone(server: Server) -> None:
    one, other = chat(server, "one"), chat(server, "other")
    for mine, yours in (("My dog is Rex.", "My cat is Tom."), ("What is my dog?", "What is my cat?")):
        one.say(mine)
        other.say(yours)
    alone = chat(server, "alone", "My dog is Rex.", "What is my dog?")
    assert one.messages == alone.messages
    assert server.state(one.conversation) == server.state(alone.conversation) != server.state(other.conversation)


def test_an_edit_in_the_middle_goes_back_exactly(server: Server) -> None:
    edited = chat(server, "edited", "One.", "Two.", "Three.")
    edited.back_to(1)
    edited.say("Two, in other words.")
    fresh = chat(server, "fresh", "One.", "Two, in other words.")
    assert edited.messages == fresh.messages
    assert edited.turn == "2"
    assert server.state(edited.conversation) == server.state(fresh.conversation)
    with server.store() as store:
        assert store.row("SELECT count(*) AS n FROM turns WHERE conversation_id = ?", [edited.conversation])["n"] == 2


def test_a_reply_asked_for_again_takes_the_place_of_the_old_one(server: Server) -> None:
    client = chat(server, "again", "One.", "Two.")
    before, said = server.state(client.conversation), client.messages[-1]["content"]
    client.back_to(1)
    assert client.say("Two.", temperature=0) == said
    assert (client.turn, server.state(client.conversation)) == ("2", before)
    client.back_to(0)
    client.say("One.")
    assert client.turn == "1"


def test_a_request_for_a_title_leaves_the_memory_alone(server: Server) -> None:
    client = chat(server, "titled", "Tell me more.")
    before = server.state(client.conversation)
    aside = Client(server, X_OpenWebUI_Chat_Id="titled")
    assert aside.say(TITLE.format(question="Tell me more.", answer=client.messages[-1]["content"]))
    assert aside.said.metadata == {}
    assert server.state(client.conversation) == before
    client.say("And then?")
    assert client.turn == "2"


def test_who_names_no_conversation_has_no_memory(server: Server) -> None:
    client = Client(server)
    client.say("One.")
    client.say("Two.")
    assert client.said.metadata == {}


@pytest.mark.parametrize(
    "named",
    [
        {"extra_headers": {"X-Session-Id": "by header"}},
        {"extra_body": {"conversation": "by body"}},
        {"metadata": {"conversation": "by metadata"}},
        {"prompt_cache_key": "by cache key"},
        {"user": "by user"},
        {"extra_headers": {"X-Dmem-Profile": "by-header"}},
    ],
)
def test_each_way_to_name_a_conversation_comes_back_to_it(server: Server, named: dict[str, Any]) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "One."}]
    first = client.chat.completions.create(model=server.model, messages=messages, **named)
    answer = {"role": "assistant", "content": first.choices[0].message.content}
    messages += [answer, {"role": "user", "content": "Two."}]
    second = client.chat.completions.create(model=server.model, messages=messages, **named)
    assert second.metadata == {**first.metadata, "turn": "2"}


def test_a_conversation_goes_on_after_the_server_was_ended_and_killed(server: Server) -> None:
    client = chat(server, "restarted", "One.")
    for number, turn in ((15, "2"), (9, "3")):
        kept = server.state(client.conversation)
        server.stop(number)
        server.start()
        assert server.state(client.conversation) == kept
        again = Client(server, X_OpenWebUI_Chat_Id="restarted")
        again.messages = client.messages
        again.say("And then?")
        assert again.turn == turn
        assert server.state(client.conversation) != kept


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the packaged model and its own adapter."""
    home: Path = tmp_path_factory.mktemp("starter")
    running = Server(home, "--ctx-size", "1024", DMEM_OPTIONS_TEMPERATURE="0", DMEM_OPTIONS_MAX_TOKENS="24")
    running.start()
    yield running
    running.stop()


def test_a_fact_is_known_where_it_was_told_and_nowhere_else_even_after_a_restart(starter: Server) -> None:
    def ask(name: str) -> str:
        return Client(starter, X_Dmem_Conversation=name).say("What is my name?")

    Client(starter, X_Dmem_Conversation="told").say("My name is Zacharias.")
    Client(starter, X_Dmem_Conversation="donor").say("My name is Wilhelmina.")
    for _ in range(2):
        assert "Zacharias" in ask("told")
        assert "Wilhelmina" in ask("donor")
        assert not {"Zacharias", "Wilhelmina"} & set(ask("neither").replace(".", " ").replace(",", " ").split())
        starter.stop()
        starter.start()
