"""Rows on their way to a batch: what is left out, counted and cut, and where labels and vectors stand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from o1_retriever.engine.template import Layout, Template, TemplateConfig
from o1_retriever_training.joint.batches import Collator, Drawn, DrawnRows, SameSourceBatches, steps_per_epoch
from o1_retriever_training.joint.losses import allowed_negatives
from o1_retriever_training.joint.recipe import DataSection, LossSection, TrainRecipe
from o1_retriever_training.joint.rows import TrainingRows, open_rows, text_key
from o1_retriever_training.rows import DataError
from tests.support.tiny import byte_tokenizer

QUERY, DOCUMENT, LENGTH = 24, 28, 56
TOKENIZERS = {layout: byte_tokenizer(layout) for layout in ("paper", "released")}


def template_of(layout: Layout = "paper") -> Template:
    return Template(
        TOKENIZERS[layout],
        TemplateConfig(layout=layout, max_query_tokens=QUERY, max_length=LENGTH),
        positions=160,
    )


def section(paths: Sequence[Path], **fields: Any) -> DataSection:
    limits = {"max_query_tokens": QUERY, "max_document_tokens": DOCUMENT, "max_length": LENGTH, "group": 4}
    return DataSection.model_validate({"train": [str(path) for path in paths], **limits, **fields})


def stored(
    folder: Path, rows: Sequence[dict[str, Any]], layout: Layout = "paper", **fields: Any
) -> TrainingRows:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_rows(section([path], **fields), template_of(layout), folder / "work", show=False)


def batch_of(
    rows: TrainingRows, numbers: Sequence[int], layout: Layout = "paper", group: int = 4, **losses: Any
) -> tuple[list[Drawn], dict[str, torch.Tensor]]:
    settings = LossSection.model_validate({"thought_dropout": 0.0, "vectors": "both", **losses})
    if layout == "released":
        settings = settings.model_copy(update={"vectors": "sampled", "thinking_probability": 1.0})
    recipe = recipe_of(settings, layout=layout, group=group, max_document_tokens=DOCUMENT)
    drawn_rows = DrawnRows(rows, recipe)
    drawn = [drawn_rows[number, 0] for number in numbers]
    return drawn, Collator(rows, template_of(layout), recipe)(drawn)


def recipe_of(
    losses: LossSection | None = None, *, layout: Layout = "paper", seed: int = 0, **data: int
) -> TrainRecipe:
    sections = {"model": {"base": "unused", "layout": layout}, "data": {"train": "unused", **data}}
    return TrainRecipe.model_validate(
        {**sections, "losses": losses or {}, "optimisation": {"seed": seed}, "output": "unused"}
    )


def text(rows: TrainingRows, number: int, layout: Layout = "paper") -> str:
    return str(TOKENIZERS[layout].decode(rows.texts.ids(number)))


def test_rows_that_teach_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = stored(
        tmp_path,
        [
            {"query": "one", "pos": ["a"], "thought": "t"},
            {"query": "two", "pos": [], "thought": None},
            {"query": "three", "pos": ["b"]},
            {"query": "four", "thought": "u"},
            {"query": "five", "neg": ["c"]},
        ],
    )
    assert len(rows) == 3
    report = rows.report
    assert (report.unusable, report.without_thought, report.without_positive) == (2, 1, 1)
    assert "2 rows with neither thought nor positive left out" in str(report)
    assert "1 row without a thought" in str(report)


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"None of the rows of .*rows.jsonl can be trained on: .*2 rows with"):
        stored(tmp_path, [{"query": "one"}, {"query": "two", "neg": ["x"]}])


def test_lines_that_are_no_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "one", "pos": ["a"]}\nnonsense\n{"query": "", "pos": ["b"]}\n')
    rows = open_rows(section([path]), template_of(), tmp_path / "work", show=False)
    assert len(rows) == 1
    assert "not JSON: 1 (line 2" in str(rows.report)
    assert "empty query: 1 (line 3" in str(rows.report)


@pytest.mark.parametrize("layout", ["paper", "released"])
def test_what_is_too_long_is_cut_between_tokens_and_counted(tmp_path: Path, layout: Layout) -> None:
    rows = stored(
        tmp_path,
        [
            {"query": "q" * 90, "pos": ["d" * 90], "neg": ["n" * 90, "short"], "thought": "t" * 90},
            {"query": "q", "pos": ["d"], "thought": "t"},
        ],
        layout,
    )
    report = rows.report
    assert (report.cut_queries, report.cut_documents, report.cut_thoughts) == (1, 2, 1)
    assert "1 query cut" in str(report)
    template = template_of(layout)
    _, batch = batch_of(rows, [0, 1], layout)
    for row, length in zip(
        batch["query_ids"], batch["query_ids"].ne(template.tokenizer.pad_token_id).sum(1), strict=True
    ):
        # Always whole: the query's markers, and eos and <emb> at the end.
        assert row[:length].tolist()[-2:] == [template.eos, template.emb]
        assert length <= LENGTH
    longest = batch["query_ids"][0].tolist()
    assert len(longest) == LENGTH
    prompt = template.prompt(template.text_ids(["q" * 90])[0])
    assert len(prompt) <= QUERY
    assert longest[: len(prompt)] == prompt
    assert longest == template.thinking_query(
        template.text_ids(["q" * 90])[0], template.text_ids(["t" * 90])[0]
    )
    assert batch["document_ids"].shape[1] == DOCUMENT
    ends = batch["document_ids"][torch.arange(len(batch["document_ends"])), batch["document_ends"]]
    assert (ends == template.emb).all()


def test_a_thought_that_was_cut_does_not_learn_to_end_there(tmp_path: Path) -> None:
    rows = stored(tmp_path, [{"query": "q", "pos": ["d"], "thought": "t" * length} for length in (3, 90)])
    template = template_of()
    for number, ends in ((0, True), (1, False)):
        _, batch = batch_of(rows, [number])
        labels = batch["labels"][2].tolist()
        assert (template.eos in labels) == ends
        thought = template.text_ids(["t"])[0] * (3 if ends else LENGTH)
        room = template.room(template.prompt(template.text_ids(["q"])[0]))
        assert labels == thought[:room] + ([template.eos] if ends else [])


FIELDS = st.fixed_dictionaries(
    {
        "query": st.text("abc", min_size=1, max_size=40),
        "pos": st.lists(st.text("de", min_size=1, max_size=40), max_size=3),
        "neg": st.lists(st.text("fgde", min_size=1, max_size=40), max_size=5),
        "thought": st.none() | st.text("hi", min_size=1, max_size=70),
    }
)


@settings(max_examples=40)
@given(
    st.lists(FIELDS, min_size=1, max_size=6),
    st.sampled_from(["paper", "released"]),
    st.sampled_from(["both", "sampled"]),
    st.integers(1, 4),
)
def test_a_batch_says_what_the_template_says(
    tmp_path_factory: pytest.TempPathFactory,
    fields: list[dict[str, Any]],
    layout: Layout,
    vectors: str,
    group: int,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    fields = [row for row in fields if row["pos"] or row["thought"]]
    unique = {row["query"]: row for row in fields}
    if not unique:
        return
    rows = stored(folder, list(unique.values()), layout)
    template = template_of(layout)
    numbers = range(len(rows))
    drawn, batch = batch_of(rows, numbers, layout, group, vectors=vectors, thinking_probability=0.5)
    expected = {}
    for row, said in zip(drawn, unique.values(), strict=True):
        query = template.text_ids([said["query"]])[0]
        thought = None if row.thought is None else template.text_ids([said["thought"]])[0]
        assert (row.thought is None) == (said["thought"] is None)
        sequences = []
        if row.documents and row.thinking:
            sequences.append(template.thinking_query(query, thought or []))
        if row.documents and row.fast:
            sequences.append(template.fast_query(query))
        expected[row.query] = sequences
    # Every vector stands behind exactly the tokens that the model will see when it is used.
    found: dict[int, list[list[int]]] = {row.query: [] for row in drawn}
    for place in range(len(batch["targets"])):
        row, column = int(batch["vector_rows"][place]), int(batch["vector_columns"][place])
        sequence = batch["query_ids"][row, : column + 1].tolist()
        assert sequence[-1] == template.emb
        (owner,) = [query for query, wanted in expected.items() if sequence in wanted]
        found[owner].append(sequence)
        chosen = next(each for each in drawn if each.query == owner)
        documents = [document(batch, d) for d in batch["groups"][place].tolist() if d >= 0]
        assert documents == [template.document(rows.texts.ids(d)[: cut(layout)]) for d in chosen.documents]
        assert int(batch["groups"][place, 0]) == int(batch["targets"][place])
        keys = {int(rows.texts.keys[d]) for d in chosen.positives}
        assert set(batch["positive_keys"][place].tolist()) - {0} == keys
    assert {query: sorted(each) for query, each in found.items()} == {
        q: sorted(e) for q, e in expected.items()
    }
    keys = batch["document_keys"][:, 0].tolist()
    assert len(set(keys)) == len(keys), "a document stands in the batch twice"
    check_labels(drawn, batch, rows, template)


def cut(layout: Layout) -> int:
    return DOCUMENT - (2 if layout == "paper" else 1)


def document(batch: dict[str, torch.Tensor], number: int) -> list[int]:
    return batch["document_ids"][number, : int(batch["document_ends"][number]) + 1].tolist()


def check_labels(
    drawn: Sequence[Drawn], batch: dict[str, torch.Tensor], rows: TrainingRows, template: Template
) -> None:
    """Labels are the thoughts and their ends, each predicted from the column before it."""
    total = 0
    for row in drawn:
        if row.thought is not None:
            prompt = template.prompt(rows.texts.ids(row.query))
            length = len(rows.texts.ids(row.thought))
            total += min(length + 1, template.room(prompt))
    assert batch["labels"].shape[1] == total
    for row, column, label in batch["labels"].T.tolist():
        assert int(batch["query_ids"][row, column + 1]) == label
        assert label not in {template.emb}


def test_a_document_is_the_same_by_its_text_or_by_its_id(tmp_path: Path) -> None:
    rows = stored(
        tmp_path,
        [
            {"query": "one", "pos": ["a"], "neg": ["x", "y"], "pos_ids": [7]},
            {"query": "two", "pos": ["worded otherwise"], "neg": ["a"], "pos_ids": ["7"]},
            {"query": "three", "pos": ["b"], "pos_ids": ["8", "too many"]},
            {"query": "four", "pos": ["y"], "pos_ids": [None]},
        ],
    )
    _, batch = batch_of(rows, range(4), vectors="sampled")
    texts = {"a": "a", "worded otherwise": "w", "b": "b", "x": "x", "y": "y"}
    names = [texts[str(TOKENIZERS["paper"].decode(document(batch, d)[1:-1]))] for d in range(5)]
    allowed = allowed_negatives(batch["positive_keys"], batch["document_keys"], batch["targets"])
    seen = {
        names[target]: "".join(sorted(name for name, yes in zip(names, row, strict=True) if yes))
        for target, row in zip(batch["targets"].tolist(), allowed.tolist(), strict=True)
    }
    # a and w have the same id: neither is the other's negative, and of the two the first counts for others.
    first = min("aw", key=names.index)
    assert seen == {
        "a": "abxy",
        "w": "bwxy",
        "b": "".join(sorted(f"b{first}xy")),
        "y": "".join(sorted(f"b{first}xy")),
    }


def test_the_same_text_has_one_key_however_it_is_spaced() -> None:
    assert text_key("a  b\n") == text_key("a b") != text_key("ab")
    assert 0 < text_key("") < 2**63


def test_rows_are_tokenised_once_and_again_when_something_changed(tmp_path: Path) -> None:
    rows = [{"query": "one", "pos": ["a"], "thought": "t"}]
    stored(tmp_path, rows)
    (folder,) = (tmp_path / "work").iterdir()
    stamp = (folder / "rows.npz").stat().st_mtime_ns
    stored(tmp_path, rows)
    assert (folder / "rows.npz").stat().st_mtime_ns == stamp
    changed = stored(tmp_path, [*rows, {"query": "two", "pos": ["a"]}])
    assert len(changed) == 2
    stored(tmp_path, [*rows, {"query": "two", "pos": ["a"]}], max_document_tokens=20)
    assert len(list((tmp_path / "work").iterdir())) == 3


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 3), min_size=4, max_size=40),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 30),
)
def test_batches_are_of_one_source_and_each_row_comes_once_an_epoch(
    sources: list[int], size: int, world: int, steps: int
) -> None:
    array = np.asarray(sources, np.int64)
    whole = steps_per_epoch(array, size=size, world=world)
    if not whole:
        return
    of_ranks = [
        list(SameSourceBatches(array, size=size, steps=steps, seed=3, rank=rank, world=world))
        for rank in range(world)
    ]
    assert {len(batches) for batches in of_ranks} == {steps}
    together = [[pick for rank in range(world) for pick in of_ranks[rank][step]] for step in range(steps)]
    seen: dict[int, list[int]] = {}
    for step, picks in enumerate(together):
        assert len({array[row] for row, _ in picks}) == 1
        assert all(0 < len(of_ranks[rank][step]) <= size for rank in range(world))
        assert {epoch for _, epoch in picks} == {step // whole}
        seen.setdefault(step // whole, []).extend(row for row, _ in picks)
    for rows in seen.values():
        assert len(set(rows)) == len(rows)
    # Another number of processes with as large a batch of all sees the same rows in the same step.
    if world == 2:
        alone = list(SameSourceBatches(array, size=size * 2, steps=steps, seed=3))
        if steps_per_epoch(array, size=size * 2) == whole:
            assert [sorted(batch) for batch in alone] == [sorted(batch) for batch in together]


SCORED = {"pos_scores": [1.0, 2.0], "neg_scores": [0.0] * 6}


def test_draws_do_not_depend_on_what_was_drawn_before(tmp_path: Path) -> None:
    rows = stored(
        tmp_path,
        [
            {"query": f"q{n}", "pos": ["a", "b"], "neg": list("cdefgh"), "all_thought": ["t", "u"], **SCORED}
            for n in range(8)
        ],
        train=[{"path": str(tmp_path / "rows.jsonl"), "thoughts": "any"}],
    )
    one = DrawnRows(rows, recipe_of(seed=1, group=4))
    first = [one[row, 0] for row in range(8)]
    assert [one[row, 0] for row in reversed(range(8))][::-1] == first
    assert [one[row, 1] for row in range(8)] != first
    other = DrawnRows(rows, recipe_of(seed=2, group=4))
    assert [other[row, 0] for row in range(8)] != first


def test_the_indicator_and_the_dropout_have_their_probabilities(tmp_path: Path) -> None:
    rows = stored(tmp_path, [{"query": "q", "pos": ["a"], "thought": "t"}, {"query": "r", "thought": "t"}])
    losses = LossSection(thinking_probability=0.3, thought_dropout=0.2)
    drawn = DrawnRows(rows, recipe_of(losses, seed=1, group=4))
    many = [drawn[0, epoch] for epoch in range(4000)]
    dropped = np.mean([row.thought is None for row in many])
    thinking = np.mean([row.thinking for row in many if row.thought is not None])
    assert dropped == pytest.approx(0.2, abs=0.03)
    assert thinking == pytest.approx(0.3, abs=0.03)
    assert all(row.fast != row.thinking for row in many)
    assert all(row.thought is not None for row in (drawn[1, epoch] for epoch in range(200)))
