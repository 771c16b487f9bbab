"""The README's ten lines with each kind of thinker: a folder, a `.gguf` file, and a server of llama.cpp."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from o1_retriever import ThinkingEmbedder
from o1_retriever.engine.checkpoint import wheel_of
from tests.docs.test_pages import PAIR, snippets
from tests.support.adapters import bag_of_words
from tests.support.sentences import ends_in_a_sentence, longest_run

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
pytestmark = [PAIR, pytest.mark.long]


@pytest.fixture(scope="module")
def file() -> Path:
    found = wheel_of(NAME)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def folder(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as transformers saves one, in bfloat16."""
    from transformers import AutoModelForCausalLM

    from o1_retriever.engine.load import LoadOptions, load_causal_lm

    loaded = load_causal_lm(str(file), LoadOptions(device="cpu", dtype="bfloat16"))
    fresh = AutoModelForCausalLM.from_config(loaded.model.config, dtype=loaded.model.dtype)
    fresh.load_state_dict(loaded.model.state_dict())
    made = tmp_path_factory.mktemp("folder")
    fresh.save_pretrained(made)
    loaded.tokenizer.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def address(file: Path) -> Iterator[str]:
    """An OpenAI-compatible server of llama.cpp on the loopback interface."""
    xllamacpp = pytest.importorskip("xllamacpp")
    pytest.importorskip("openai")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_parallel, parameters.n_ctx = 3, 3 * 1024
    # Its threads wait for each other without rest: beside other work, two are slower than one.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    yield f"{server.listening_address}/v1"
    del server


@pytest.mark.parametrize("kind", ["file", "folder", "address"])
def test_the_ten_lines_run_with(
    kind: str, root: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("O1_RETRIEVER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    [ten, *_] = snippets(root / "README.md")
    assert ten.count(f'"{NAME}"') == 1
    known: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(compile(ten.replace(NAME, str(request.getfixturevalue(kind))), "README.md", "exec"), known)
    thought, answer = shown.getvalue().splitlines()
    assert answer == "answer:  Chlorophyll lets leaves catch sunlight and turn it into sugar."
    thoughts = [each.text for each in known["query"].thoughts]  # type: ignore[attr-defined]
    assert thought == f"thought: {thoughts[1]}"
    assert "photosynthesis" in " ".join(thoughts).lower()
    assert len(thoughts) == 3
    for text in thoughts:
        assert ends_in_a_sentence(text), text
        assert longest_run(text) <= 3, text


def test_a_server_of_llama_cpp_is_followed_while_it_writes(address: str) -> None:
    embedder = ThinkingEmbedder.from_parts(address, bag_of_words, cache=False)
    pieces = list(embedder.stream_thoughts("Why does ice float on water?"))
    for index in range(3):
        own = [piece for piece in pieces if piece.index == index]
        assert len(own) > 5
        assert own[-1].thought is not None
        assert own[-1].thought.text in "".join(piece.text for piece in own)
        assert own[-1].thought.prompt_tokens > 100
        assert own[-1].thought.completion_tokens > 5
    # They take turns, as they are written at the same time.
    order = [piece.index for piece in pieces]
    assert order.index(1) < max(place for place, index in enumerate(order[:-3]) if index == 0)


def test_the_wheel_of_llama_cpp_belongs_to_the_tests(root: Path) -> None:
    assert '"xllamacpp' in (root / "pyproject.toml").read_text(encoding="utf-8")
