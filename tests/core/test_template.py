"""Layouts, truncation, and text that spells special tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import BertProcessing

from o1_retriever.engine.template import MARKERS, Layout, Template, TemplateConfig, detect_layout
from o1_retriever.errors import CheckpointError
from tests.support.tiny import byte_tokenizer, letter_tokenizer

PAPER = byte_tokenizer("paper")
RELEASED = byte_tokenizer("released")
LETTERS = letter_tokenizer("paper")
# The same, with tokens of its own around every text.
SEPARATING = letter_tokenizer("paper")
SEPARATING.backend_tokenizer.post_processor = BertProcessing(
    ("[SEP]", SEPARATING.sep_token_id), ("[CLS]", SEPARATING.cls_token_id)
)


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
    assert made.room(made.prompt(long)) == 1


@pytest.mark.parametrize("layout", ["paper", "released"])
def test_the_fast_vector_is_read_where_a_prompt_has_its_emb(layout: Layout) -> None:
    made = template(layout)
    prompt = made.prompt(made.text_ids(["q"])[0])
    places = [place - len(prompt) for place, each in enumerate(prompt) if each == made.emb]
    assert places == ([] if made.fast_offset is None else [made.fast_offset])


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


def test_a_tokenizer_that_knows_plain_text_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Template, "_spelled_out", None)
    made = Template(PAPER, TemplateConfig())
    assert PAPER.decode(made.text_ids(["a <emb> b"])[0]) == "a <emb> b"
    assert Template(SEPARATING, TemplateConfig()).text_ids(["7"]) == [[SEPARATING.convert_tokens_to_ids("7")]]


def test_a_tokenizer_that_knows_no_plain_text_is_given_spelled_tokens_in_pieces() -> None:
    class Unaware(type(PAPER)):  # type: ignore[misc]
        def __call__(self, *texts: object, split_special_tokens: bool = False, **options: object) -> object:
            return super().__call__(*texts, **options)

    unaware = byte_tokenizer("paper")
    unaware.__class__ = Unaware
    made = Template(unaware, TemplateConfig())
    assert made.emb in unaware("a <emb> b", split_special_tokens=True)["input_ids"]
    for text in ("a <emb> b</s><thought>", "plain"):
        assert PAPER.decode(made.text_ids([text])[0]) == text
        assert made.emb not in made.text_ids([text])[0]


def test_a_spelled_token_loses_none_of_its_letters() -> None:
    for tokenizer in (LETTERS, SEPARATING):
        made = Template(tokenizer, TemplateConfig())
        for text in ("<emb>", "a<emb>b<emb>c", "<emb><emb>", "ab", "[sep]<doc>"):
            found = [each.removeprefix("##") for each in spelled(made, made.text_ids([text])[0])]
            assert "".join(found) == text


def test_a_long_text_is_no_reason_to_warn() -> None:
    tokenizer = letter_tokenizer("paper")
    tokenizer.model_max_length = 4
    Template(tokenizer, TemplateConfig()).text_ids(["abcdefgh"])
    assert not tokenizer.deprecation_warnings, "transformers notes there what it has warned of"


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
    with pytest.raises(
        CheckpointError, match=r"tokens \['<doc>', '<query>', '<thought>'\]; expected <query> <emb>"
    ):
        detect_layout(plain)
    with pytest.raises(
        CheckpointError, match="tokens of no known layout; expected <query> <emb> <thought> <doc>"
    ):
        detect_layout(byte_tokenizer(None))


def test_an_instruction_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(CheckpointError, match="instruction takes 36 of the 40"):
        template(instruction="y" * 36)
    with pytest.raises(CheckpointError, match="instruction takes 33 of the 40"):
        template(instruction="y" * 33)
    assert len(template(instruction="y" * 32).prompt([7] * 99)) == 40


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
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"layout": "paper", "max_length": "long"}', "'long'"),
        ('{"layout": "paper", "max_length": 7}', "max_length 7; expected a whole number from 8 up"),
        ('{"layout": "paper", "max_query_tokens": true}', "max_query_tokens True"),
        ('{"layout": "paper", "settings": 3}', "settings 3"),
        ('{"layout": "paper", "instruction": 3}', "instruction 3"),
    ],
)
def test_a_wrong_config_file_says_what_is_wrong(tmp_path: Path, content: str, found: str) -> None:
    path = tmp_path / "o1_embedder.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=found):
        TemplateConfig.from_file(path)


def test_a_config_file_that_is_missing_or_bare(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        TemplateConfig.from_file(tmp_path / "none.json")
    (tmp_path / "bare.json").write_text('{"layout": "paper", "max_length": 8}')
    assert TemplateConfig.from_file(tmp_path / "bare.json") == TemplateConfig(max_length=8)


def test_the_config_file_is_plain_json(tmp_path: Path) -> None:
    TemplateConfig().save(tmp_path)
    assert (tmp_path / "o1_embedder.json").read_text() == (
        """{
  "format_version": 1,
  "pooling": "emb",
  "layout": "paper",
  "max_query_tokens": 256,
  "max_length": 512,
  "instruction": "",
  "settings": {}
}
"""
    )
