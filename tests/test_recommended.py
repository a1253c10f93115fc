"""Options of replies that nobody set are the model's: its file's, else its catalogue entry's, else ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_support import MakeChats

from deltamem_cli import cli, config
from deltamem_cli.engine import Sampling
from deltamem_cli.engine.sampling import recommended
from deltamem_cli.models.recommending import recommended_for
from deltamem_cli.session import loading

STARTER = {"temperature": 0.2, "top_p": 0.9}


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "own"))
    recommended_for.cache_clear()


def test_a_model_s_file_recommends_by_the_names_of_its_format() -> None:
    said = {"general.sampling.temp": "0.6", "general.sampling.top_k": 20, "general.sampling.penalty_repeat": 1.05}
    assert recommended(said.get) == {"temperature": 0.6, "top_k": 20, "repeat_penalty": 1.05}


def test_a_recommendation_that_makes_no_sense_is_left_out() -> None:
    said = {"general.sampling.temp": "-1", "general.sampling.top_p": "x", "general.sampling.min_p": 0.1}
    assert recommended(said.get) == {"min_p": 0.1}


def test_what_is_set_beats_what_is_recommended_beats_the_preset(
    make_chats: MakeChats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "recommended", lambda metadata: {"temperature": 0.3, "top_k": 7})
    config.set_value("options.top_k", "9")
    with make_chats().open(options={}) as (session, _):
        sampling = session.settings.sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.3, 9, Sampling.top_p)


def test_the_configuration_shows_where_a_value_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    def shown() -> dict[str, Any]:
        assert cli.main(["config", "list", "--json"]) == 0
        return {key["key"]: (key["value"], key["source"]) for key in json.loads(capsys.readouterr().out)}

    for name, value in STARTER.items():
        assert shown()[f"options.{name}"] == (value, "recommended for starter")
    assert shown()["options.min_p"] == (Sampling.min_p, "default")
    config.set_value("options.temperature", "0.7")
    assert shown()["options.temperature"] == (0.7, "file")
