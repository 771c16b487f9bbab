"""What nobody has to type: variables of the environment, a file in the folder, and what goes before what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from o1_retriever.cli.options import Configured, Setting, _subclasses, in_force, layered, named
from tests.support.commands import ok, refused, run


def written(text: str, folder: Path = Path()) -> None:
    (folder / "o1-retriever.toml").write_text(text, encoding="utf-8")


def thoughts(*arguments: str) -> list[str]:
    record = json.loads(ok("think", "Why?", "--json", *arguments))
    return [thought["text"] for thought in record["thoughts"]]


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(here, monkeypatch):
    assert len(thoughts()) == 2  # the model's own
    written("n_thoughts = 1\nseed = 3")
    assert len(thoughts()) == 1
    monkeypatch.setenv("O1_RETRIEVER_N_THOUGHTS", "4")
    assert len(thoughts()) == 4
    assert len(thoughts("-n", "3")) == 3
    third = thoughts("--max-new-tokens", "6")
    assert third != thoughts("--max-new-tokens", "6", "--seed", "4")
    assert third == thoughts("--max-new-tokens", "6", "--seed", "3")


def test_the_nearest_file_upward_counts_and_its_paths_are_meant_from_there(indexed, model, monkeypatch):
    monkeypatch.delenv("O1_RETRIEVER_MODEL")
    Path("mine").symlink_to(model)
    written('model = "mine"\nindex = ".o1-index"\nthinking = "never"')
    Path("a/b").mkdir(parents=True)
    monkeypatch.chdir("a/b")
    record = json.loads(ok("search", "Why?", "--json"))
    assert record["hits"]
    assert record["thoughts"] == []
    written('model = "nowhere/else"')
    assert "nowhere/else" in json.loads(ok("info", "--json"))["model"]["name"]


def test_info_shows_what_is_in_force_and_where_it_is_from(here, monkeypatch):
    written('n_thoughts = 5\ndevice = "cpu"\nhybrid = true')
    monkeypatch.setenv("O1_RETRIEVER_DEVICE", "cuda:7")
    record = json.loads(ok("info", "--json", "--device", "cpu"))
    file = str(here / "o1-retriever.toml")
    assert record["config"] == file
    assert record["settings"]["n_thoughts"] == {"value": 5, "from": file}
    assert record["settings"]["device"] == {"value": "cuda:7", "from": "$O1_RETRIEVER_DEVICE"}
    said = " ".join(ok("info", "--device", "cpu").split())
    assert "n_thoughts 5 (" in said
    assert "hybrid True" in said


def test_a_flag_of_the_file_can_be_taken_back(here, monkeypatch):
    written("4bit = true")
    assert json.loads(ok("info", "--json"))["dtype"].startswith("nf4")
    assert not json.loads(ok("info", "--json", "--no-4bit"))["dtype"].startswith("nf4")
    monkeypatch.setenv("O1_RETRIEVER_4BIT", "false")
    assert not json.loads(ok("info", "--json"))["dtype"].startswith("nf4")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("thinkr = 'a'", "Did you mean thinker?"),
        ("n-thoughts = 3", "Did you mean n_thoughts?"),
        ("n_thoughts = 'many'", "has n_thoughts = 'many'; expected "),
        ("n_thoughts = true", "has n_thoughts = True; expected "),
        ("dtype = 'float12'", "has dtype = 'float12'; expected "),
        ("hybrid = 'perhaps'", "has hybrid = 'perhaps'; expected "),
        ("index = ['a']", "expected a text, a number, true or false"),
        ("thinker = ", "cannot be read as TOML"),
        ("k = 3", "expected some of 4bit, "),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_the_file(here, text, expected):
    Path(".o1-index").mkdir()
    written(text)
    said = refused("search", "Why?")
    assert "o1-retriever.toml" in said
    assert expected in said


def test_what_is_wrong_in_a_variable_is_named_with_it(here, monkeypatch):
    monkeypatch.setenv("O1_RETRIEVER_N_THOUGHTS", "three")
    assert "$O1_RETRIEVER_N_THOUGHTS has n_thoughts = 'three'; expected a whole number" in refused(
        "think", "Why?"
    )
    monkeypatch.setenv("O1_RETRIEVER_N_THOUGHTS", "")
    assert len(thoughts()) == 2
    # A value out of range says so as on the command line.
    monkeypatch.setenv("O1_RETRIEVER_N_THOUGHTS", "0")
    assert "n_thoughts is 0" in refused("think", "Why?")


def test_what_is_named_nearer_hides_what_cannot_stand_beside_it():
    def settings(**values: str) -> dict[str, Setting]:
        return {name: Setting(value, "") for name, value in values.items()}

    file = settings(thinker="http://a/v1", thinker_model="m", encoder="e", thinking="auto")
    assert set(layered(settings(model="x"), file)) == {"model", "thinking"}
    assert set(layered(settings(thinker="y.gguf"), file)) == {"thinker", "encoder", "thinking"}
    assert set(layered(settings(fast="true"), settings(model="z"), file)) == {"fast", "model"}
    assert layered(file, settings(encoder="other"))["encoder"].value == "e"


def test_a_pair_on_the_command_line_hides_the_model_of_the_environment(here):
    record = json.loads(ok("info", "--json", "--thinker", "http://127.0.0.1:1/v1"))
    assert record["model"]["thinker"] == "http://127.0.0.1:1/v1"
    assert "--model beside" in refused("think", "Why?", "--model", "a", "--encoder", "b")


def test_every_option_of_the_groups_has_one_name():
    names = [name for group in _subclasses(Configured) for name in named(group)]
    fields = {name: field for group in _subclasses(Configured) for name, field in named(group).items()}
    assert {
        "thinker", "encoder", "model", "thinker_model", "n_thoughts", "thinking", "fast", "index", "device",
        "dtype", "4bit", "temperature", "top_p", "max_new_tokens", "seed", "hits", "hybrid", "pooling",
        "no_cache", "repetition_penalty", "rounds", "query_weight", "guard", "min_relevance", "encoder_dtype",
    } == set(names)  # fmt: skip
    assert fields["4bit"] == "four_bit"
    assert in_force().keys() <= set(names)


def test_help_needs_no_readable_file(here):
    written("nonsense")
    assert run("search", "--help").exit_code == 0
