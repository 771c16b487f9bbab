"""Layouts, truncation, and text that spells special tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever.engine.template import MARKERS, Layout, Template, TemplateConfig, detect_layout
from o1_retriever.errors import CheckpointError
from tests.support.tiny import byte_tokenizer, letter_tokenizer

PAPER = byte_tokenizer("paper")
RELEASED = byte_tokenizer("released")
LETTERS = letter_tokenizer("paper")


def template(layout: Layout = "paper", **options: object) -> Template:
    config = TemplateConfig(layout=layout, max_query_tokens=40, max_length=64)
    return Template(PAPER if layout == "paper" else RELEASED, config, **options)  # type: ignore[arg-type]


def spelled(made: Template, ids: list[int]) -> list[str]:
    return made.tokenizer.convert_ids_to_tokens(ids)


def test_the_paper_layout_token_by_token() -> None:
    made = template()
    q, t, d = made.text_ids(["q", "t", "d"])
    assert spelled(made, made.fast_query(q)) == ["<query>", "q", "<emb>"]
    assert spelled(made, made.prompt(q)) == ["<query>", "q", "<emb>", "<thought>"]
    assert spelled(made, made.thinking_query(q, t)) == [
        "<query>", "q", "<emb>", "<thought>", "t", "</s>", "<emb>",
    ]  # fmt: skip
    assert spelled(made, made.document(d)) == ["<doc>", "d", "<emb>"]


def test_the_released_layout_token_by_token() -> None:
    made = template("released")
    q, t, d = made.text_ids(["q", "t", "d"])
    assert spelled(made, made.fast_query(q)) == ["<query>", "q", "</query>", "<thought>", "</s>", "<emb>"]
    assert spelled(made, made.prompt(q)) == ["<query>", "q", "</query>", "<thought>"]
    assert spelled(made, made.thinking_query(q, t)) == [
        "<query>", "q", "</query>", "<thought>", "t", "</s>", "<emb>",
    ]  # fmt: skip
    assert spelled(made, made.document(d)) == ["d", "<emb>"]


def test_an_instruction_follows_the_query_marker_and_is_never_truncated() -> None:
    made = template(instruction="find: ")
    ids = made.prompt(made.text_ids(["x" * 500])[0])
    text = "".join(spelled(made, ids))
    assert text.startswith("<query>find:")
    assert text.endswith("<emb><thought>")
    assert len(ids) == 40


@pytest.mark.parametrize("layout", ["paper", "released"])
def test_text_is_truncated_and_markers_are_not(layout: Layout) -> None:
    made = template(layout)
    long = made.text_ids(["x" * 500])[0]
    prompt = made.prompt(long)
    assert len(prompt) == 40
    assert spelled(made, prompt)[-1] == "<thought>"
    assert len(made.document(long)) == 64
    assert made.document(long)[-1] == made.emb
    whole = made.thinking_query(long, long)
    assert len(whole) == 64
    assert whole[-2:] == [made.eos, made.emb]


def test_a_model_with_few_positions_bounds_everything() -> None:
    made = template(positions=24)
    long = made.text_ids(["x" * 500])[0]
    assert len(made.document(long)) == 24
    assert len(made.thinking_query(long, long)) == 24
    assert made.room(made.prompt(long)) >= 1


def test_the_announced_limits_are_where_truncation_begins() -> None:
    made = template(instruction="ab")
    fits, over = [7] * made.max_query_text, [7] * (made.max_query_text + 1)
    assert made.prompt(fits).count(7) == len(fits)
    assert made.prompt(over).count(7) == len(fits)
    fits, over = [7] * made.max_document, [7] * (made.max_document + 1)
    assert made.document(fits).count(7) == len(fits)
    assert made.document(over).count(7) == len(fits)


TEXTS = st.text(max_size=30)
SPELLINGS = st.sampled_from(
    [*MARKERS["paper"], *MARKERS["released"], "</s>", "<|endoftext|>", "[SEP]", "[MASK]", "[CLS]"]
)


@given(st.lists(st.one_of(TEXTS, SPELLINGS), max_size=8).map("".join))
def test_no_text_ever_becomes_a_special_token(text: str) -> None:
    for tokenizer in (PAPER, LETTERS):
        made = Template(tokenizer, TemplateConfig())
        special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special} - {
            tokenizer.unk_token_id
        }
        assert special.isdisjoint(made.text_ids([text])[0])


@given(st.lists(st.one_of(TEXTS, SPELLINGS), max_size=8).map("".join))
def test_text_survives_the_way_around_special_tokens(text: str) -> None:
    made = Template(PAPER, TemplateConfig())
    assert PAPER.decode(made.text_ids([text])[0]) == text
    # The slow way, for tokenizers that do not know `split_special_tokens`.
    assert PAPER.decode(made._spelled_out(text)) == text
    assert made.emb not in made._spelled_out(text)


def test_layouts_are_recognised_by_their_special_tokens() -> None:
    assert detect_layout(PAPER) == "paper"
    assert detect_layout(RELEASED) == "released"


def test_a_tokenizer_of_no_layout_is_refused() -> None:
    plain = letter_tokenizer("paper").__class__(
        tokenizer_object=byte_tokenizer().backend_tokenizer.__class__.from_str(
            byte_tokenizer().backend_tokenizer.to_str().replace("<emb>", "<other>")
        ),
        eos_token="</s>",
    )
    with pytest.raises(CheckpointError, match="<query> <emb> <thought> <doc>"):
        detect_layout(plain)


def test_an_instruction_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(CheckpointError, match="instruction takes 36 of the 40"):
        template(instruction="y" * 36)


def test_suppressed_tokens_are_the_special_ones_without_eos() -> None:
    made = template()
    suppressed = set(made.suppressed(len(PAPER) + 3))
    assert made.emb in suppressed
    assert made.eos not in suppressed
    assert {len(PAPER), len(PAPER) + 2} <= suppressed
    assert made.text_ids(["a"])[0][0] not in suppressed
    assert LETTERS.unk_token_id in Template(LETTERS, TemplateConfig()).suppressed(len(LETTERS))


def test_the_config_file_round_trips(tmp_path: Path) -> None:
    config = TemplateConfig(layout="released", max_length=300, settings={"k": 2})
    config.save(tmp_path)
    assert TemplateConfig.from_file(tmp_path / "o1_embedder.json") == config


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "layout"),
        ('{"layout": "other"}', "'other'"),
        ('{"layout": "paper", "max_length": "long"}', "'long'"),
        ('{"layout": "paper", "settings": 3}', "settings 3"),
        ('{"layout": "paper", "instruction": 3}', "instruction 3"),
    ],
)
def test_a_wrong_config_file_says_what_is_wrong(tmp_path: Path, content: str, found: str) -> None:
    path = tmp_path / "o1_embedder.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=found):
        TemplateConfig.from_file(path)


def test_the_config_file_is_plain_json(tmp_path: Path) -> None:
    TemplateConfig().save(tmp_path)
    assert json.loads((tmp_path / "o1_embedder.json").read_text())["layout"] == "paper"
