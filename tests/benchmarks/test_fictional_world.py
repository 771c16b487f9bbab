"""The generated world: what is asked is on its pages, what is held out stays out, and its files are sound."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fictional_world.__main__ import main
from benchmarks.fictional_world.questions import candidate_thoughts, split_questions
from benchmarks.fictional_world.world import RELATIONS, World, WorldSettings, invent_names, make_world
from benchmarks.fictional_world.writing import WorldReport, write_world
from o1_retriever.engine.load import LoadOptions, load_model
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation import load_collection
from o1_retriever_training.rows import RowProblems, read_rows
from o1_retriever_training.vote import vote

SMALL = WorldSettings(people=12, companies=5, cities=6, countries=3, layers=1, width=16, heads=2)

worlds = st.builds(
    WorldSettings,
    seed=st.integers(0, 2**32),
    people=st.integers(4, 40),
    companies=st.integers(3, 12),
    cities=st.integers(5, 12),
    countries=st.integers(1, 5),
    held_out=st.floats(0.2, 0.9),
    candidates=st.integers(1, 5),
    wrong=st.floats(0, 0.9),
)


def pattern(template: str, **groups: str) -> re.Pattern[str]:
    """A regular expression of a sentence with holes."""
    found = re.escape(template)
    for name, inside in groups.items():
        found = found.replace(re.escape("{" + name + "}"), f"(?P<{name}>{inside})")
    return re.compile(found)


class Reader:
    """Answers questions by reading pages and nothing else: it knows the language, not the world."""

    def __init__(self, pages: list[str]) -> None:
        self.said: dict[tuple[str, str], str] = {}
        self.page_of: dict[str, str] = {}
        for page in pages:
            first, *facts = re.findall(r"[^.]+\.", page)
            name = re.fullmatch(r"(\w+) is a (?:person|company|city|country)\.", first)[1]
            self.page_of[name] = page
            for fact in facts:
                self.read(name, fact.strip())

    def read(self, name: str, fact: str) -> None:
        for relation in RELATIONS:
            match = pattern(relation.statement, subject=r"\w+", object=r"\w+").fullmatch(fact)
            if match:
                assert match["subject"] == name
                assert self.said.setdefault((name, relation.name), match["object"]) == match["object"]
                return
        raise AssertionError(f"a sentence that says nothing: {fact}")

    def named(self, phrase: str) -> str:
        if phrase in self.page_of:
            return phrase
        for relation in RELATIONS:
            match = pattern(relation.phrase, subject=".+").fullmatch(phrase)
            if match:
                return self.said[self.named(match["subject"]), relation.name]
        raise AssertionError(f"nobody is called {phrase}")

    def answer(self, question: str) -> str:
        for relation in RELATIONS:
            match = pattern(relation.question, subject=".+").fullmatch(question)
            if match:
                return self.said[self.named(match["subject"]), relation.name]
        raise AssertionError(f"not a question: {question}")


def pages_of(world: World) -> list[str]:
    return [world.page(entity) for entity in world.entities]


@given(worlds)
@settings(max_examples=40)
def test_every_answer_follows_from_the_pages(chosen: WorldSettings) -> None:
    world = make_world(chosen)
    reader = Reader(pages_of(world))
    split = split_questions(world, chosen)
    for question in (*split.one_hop, *split.two_hop, *split.dev, *split.test):
        assert reader.answer(question.text) == question.answer.name
        # The thought says just those facts, in the order in which they lead to the answer.
        at = question.subject.name
        for fact, said in zip(question.chain, re.findall(r"[^.]+\.", question.thought), strict=True):
            assert said.strip() in reader.page_of[at]
            at = fact.object.name
        assert at == question.answer.name
        assert question.answer.name not in question.text


@given(worlds)
@settings(max_examples=40)
def test_every_relation_is_on_its_page_and_names_are_unique(chosen: WorldSettings) -> None:
    world = make_world(chosen)
    names = [entity.name for entity in world.entities]
    assert len(set(names)) == len(names) == sum(chosen.numbers.values())
    reader = Reader(pages_of(world))
    expected = sum(chosen.numbers[relation.subject] for relation in RELATIONS)
    assert len(reader.said) == expected == len(list(world.all_facts()))
    for (subject, relation), found in reader.said.items():
        assert found != subject
        if relation == "governed_from":
            assert reader.said[found, "lies_in"] == subject


@given(worlds)
@settings(max_examples=40)
def test_nothing_held_out_is_trained_on_and_all_that_it_needs_is(chosen: WorldSettings) -> None:
    world = make_world(chosen)
    split = split_questions(world, chosen)
    trained = [*split.one_hop, *split.two_hop]
    assert not {each.text for each in trained} & {each.text for each in (*split.dev, *split.test)}
    assert not {each.thought for each in trained} & {each.thought for each in (*split.dev, *split.test)}
    assert not {each.id for each in split.dev} & {each.id for each in split.test}
    known = {each.thought for each in split.one_hop}
    for question in (*split.two_hop, *split.dev, *split.test):
        assert len(question.chain) == 2
        assert {str(fact) for fact in question.chain} <= known
    two_hop = len(split.two_hop) + len(split.dev) + len(split.test)
    assert len(split.dev) + len(split.test) == round(chosen.held_out * two_hop)
    assert abs(len(split.dev) - len(split.test)) <= 1


@given(worlds)
@settings(max_examples=40)
def test_an_expert_errs_about_the_bridge_but_never_always(chosen: WorldSettings) -> None:
    world = make_world(chosen)
    split = split_questions(world, chosen)
    facts = {str(fact) for fact in world.all_facts()}
    for question, thoughts in zip(
        split.two_hop, candidate_thoughts(world, split.two_hop, chosen), strict=True
    ):
        assert len(thoughts) == chosen.candidates
        assert question.thought in thoughts
        for thought in set(thoughts) - {question.thought}:
            first, second = re.findall(r"[^.]+\.", thought)
            assert first not in facts, "a wrong thought is wrong about the bridge"
            assert second.strip() in facts, "and true from there on"


def test_experts_who_never_err_and_who_often_do() -> None:
    large = WorldSettings(people=300)
    world = make_world(large)
    questions = split_questions(world, large).two_hop

    def right(wrong: float) -> float:
        found = candidate_thoughts(world, questions, WorldSettings(wrong=wrong))
        return sum(row[0] == each.thought for row, each in zip(found, questions, strict=True)) / len(found)

    assert right(0.0) == 1.0
    assert right(0.9) == pytest.approx(1 / 3 + 2 / 3 * 0.1, abs=0.05)
    assert right(0.2) == pytest.approx(1 / 3 + 2 / 3 * 0.8, abs=0.05)


def test_names_do_not_run_out() -> None:
    import random

    taken: set[str] = set()
    names = invent_names(50_000, ending="", generator=random.Random(0), taken=taken)
    assert len(set(names)) == 50_000
    assert all(re.fullmatch(r"[A-Z][a-z]+", name) for name in names)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> WorldReport:
    return write_world(tmp_path_factory.mktemp("world"), SMALL)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes(report: WorldReport, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(99)  # what others have drawn before does not matter
    state = torch.get_rng_state()
    write_world(tmp_path / "again", SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    first, again = contents(report.folder), contents(tmp_path / "again")
    assert {"train.jsonl", "candidates.jsonl", "world.json", "base/model.safetensors"} <= set(first)
    assert first == again
    other = WorldSettings(**{**json.loads(first["world.json"])["settings"], "seed": 1})
    write_world(tmp_path / "other", other)
    assert not first.items() & contents(tmp_path / "other").items() - {
        ("base/" + name, first["base/" + name])
        for name in ("config.json", "generation_config.json", "o1_embedder.json", "tokenizer_config.json")
    }


def test_rows_are_read_and_hold_what_they_should(report: WorldReport) -> None:
    rows = list(read_rows(report.train, RowProblems(str(report.train), strict=True)))
    assert len(rows) == report.one_hop + report.two_hop
    assert {row.type for row in rows} == {"one-hop", "two-hop"}
    texts = {json.loads(line)["text"] for line in (report.collection / "corpus.jsonl").open()}
    for row in rows:
        assert row.thought == row.all_thought[0]
        assert len(row.pos) == 1
        assert len(row.neg) == 3
        assert {*row.pos, *row.neg} <= texts
        assert row.pos[0] not in row.neg
        # Whoever is asked about has a page that says the name, and is not the answer.
        assert row.query.rstrip("?").split()[-1] in row.neg[0] or "born" in row.query or "work" in row.query
    undecided = list(read_rows(report.candidates, RowProblems(str(report.candidates), strict=True)))
    assert [row.query for row in undecided] == [row.query for row in rows]
    for row, right in zip(undecided, rows, strict=True):
        assert row.thought is None
        assert right.thought in row.all_thought


def test_the_collection_is_read_strictly_and_its_splits_are_disjoint(report: WorldReport) -> None:
    dev, test = (load_collection(report.collection, split=name, strict=True) for name in ("dev", "test"))
    assert len(dev.queries) == report.dev
    assert len(test.queries) == report.test
    assert not set(dev.queries) & set(test.queries)
    assert len(dev.corpus.ids) == report.entities
    reader = Reader(dev.corpus.texts(0, report.entities))
    pages = dict(zip(dev.corpus.ids, dev.corpus.texts(0, report.entities), strict=True))
    trained = {json.loads(line)["query"] for line in report.train.open()}
    for split in (dev, test):
        for identity, text in split.queries.items():
            [found] = split.qrels[identity]
            assert pages[found] == reader.page_of[reader.answer(text)]
            assert text not in trained


def test_the_base_is_a_model_of_the_paper_layout_that_knows_every_word(report: WorldReport) -> None:
    model = load_model(report.base, LoadOptions(device="cpu"))
    template, tokenizer = model.template, model.template.tokenizer
    assert template.config.layout == "paper"
    assert template.config.settings == {"n_thoughts": 1, "temperature": 0.0, "max_new_tokens": 40}
    assert model.dimension == SMALL.width
    rows = [json.loads(line) for line in report.candidates.open()]
    asked = [json.loads(line) for line in (report.collection / "queries.jsonl").open()]
    queries = [row["query"] for row in rows] + [row["text"] for row in asked]
    pages = [json.loads(line)["text"] for line in (report.collection / "corpus.jsonl").open()]
    thoughts = [thought for row in rows for thought in row["all_thought"]]
    for texts in (queries, pages, thoughts):
        ids = template.text_ids(texts)
        assert [tokenizer.decode(row) for row in ids] == texts, "reading back gives the text itself"
        assert tokenizer.unk_token_id not in {i for row in ids for i in row}
    assert max(map(len, template.text_ids(queries))) <= template.max_query_text
    assert max(map(len, template.text_ids(thoughts))) < template.config.settings["max_new_tokens"]
    assert template.text_ids(["Nobody <emb>"])[0][0] == tokenizer.unk_token_id
    assert not set(template.text_ids(["Nobody <emb>"])[0]) & {template.emb}


def test_a_committee_tells_right_from_wrong(report: WorldReport, tmp_path: Path) -> None:
    vote(report.candidates, tmp_path / "voted.jsonl", committee=["bm25"], show=False)
    right = [json.loads(line)["thought"] for line in report.train.open()]
    voted = [json.loads(line) for line in (tmp_path / "voted.jsonl").open()]
    elected = sum(row["thought"] == thought for row, thought in zip(voted, right, strict=True))
    first = sum(row["all_thought"][0] == thought for row, thought in zip(voted, right, strict=True))
    assert elected / len(right) > 0.95 > 0.8 > first / len(right)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"people": 0}, "people=0; expected a whole number from 3"),
        ({"people": True}, "people=True; expected a whole number"),
        ({"countries": 7, "cities": 5}, "cities=5; expected a whole number from 7"),
        ({"held_out": 1.0}, "held_out=1.0; expected a share"),
        ({"held_out": float("nan")}, "held_out=nan; expected a share"),
        ({"wrong": -0.1}, "wrong=-0.1; expected a share"),
        ({"width": 20, "heads": 4}, "width=20 and heads=4; expected a multiple"),
        ({"seed": -1}, "seed=-1; expected a whole number from 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict, expected: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(expected)):
        WorldSettings(**changes)


def test_a_share_too_small_for_two_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"expected at least 2, one for dev and one for test"):
        write_world(tmp_path, WorldSettings(held_out=0.0))


def test_the_command_writes_a_world(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = ["--people", "12", "--companies", "5", "--cities", "6", "--countries", "3", "--width", "16"]
    assert main([str(tmp_path / "here"), *small, "--heads", "2", "--layers", "1"]) == 0
    captured = capfd.readouterr()
    assert "26 pages with 55 facts" in " ".join(captured.err.split())
    assert captured.out == ""
    assert (tmp_path / "here" / "base" / "model.safetensors").is_file()


def test_the_command_says_what_is_wrong(
    tmp_path: Path, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--people", "1"]) == 1
    assert "people=1; expected a whole number" in capfd.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file")]) == 1
    assert "cannot be written" in " ".join(capfd.readouterr().err.split())
    shown = subprocess.run(
        [sys.executable, "-m", "benchmarks.fictional_world", "--help"],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": f"{root}:{root / 'training'}"},
    )  # fmt: skip
    assert "--held-out" in shown.stdout
