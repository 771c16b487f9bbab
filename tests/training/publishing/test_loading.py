"""A published model, loaded by its name into an empty cache by everything that the card names."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from tests.support.hub_server import HubServer, hub_server
from tests.support.publishing import environment, published, saved

FRAMEWORKS = ("langchain_core", "llama_index.core", "sentence_transformers")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name.split(".")[0]) is None for name in FRAMEWORKS),
        reason=f"needs {', '.join(FRAMEWORKS)}",
    ),
]

NAME = "me/tiny"
TEXTS = ["Chlorophyll absorbs light.", "Tigers hunt at night."]
QUERY = "How do plants live on light?"
SCRIPT = """
import json, sys
import numpy as np
import torch
torch.set_num_threads(1)
from o1_retriever import ThinkingEmbedder, ThoughtSettings
{blocks}
name, texts, query = {name!r}, {texts!r}, {query!r}
fast = ThoughtSettings(thinking="never")
ours = ThinkingEmbedder.from_pretrained(name, cache=False)
four = ThinkingEmbedder.from_pretrained(name + "/nf4", cache=False)
found = dict(
    ours=[
        ours.encode_documents(texts),
        ours.encode_queries([query]),
        ours.encode_queries([query], settings=fast),
        ours.encode_queries([query], settings=ours.settings.with_changes(guard=False)),
    ],
    four=[four.encode_documents(texts)],
    langchain=[embeddings.embed_documents(texts), [embeddings.embed_query(query)]],
    llama_index=[embedding.get_text_embedding_batch(texts), [embedding.get_query_embedding(query)]],
    plain=[model.encode_document(texts), model.encode_query([query])],
)
np.savez({out!r}, **{{f"{{k}}_{{i}}": np.asarray(v, dtype=np.float32) for k, vs in found.items()
                     for i, v in enumerate(vs)}})
print(json.dumps(dict(space=ours.space.fingerprint)))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with hub_server() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = saved(tmp_path_factory.mktemp("loading") / "model")
    # Another model in the place of the copy in four bits, which takes seconds to make and to load.
    saved(found / "nf4", seed=1)
    return found


@pytest.fixture(scope="module")
def loaded(server: HubServer, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The vectors that a new process makes, which knows the name of the model alone."""
    home = folder.parent / "publisher"
    done = published(server, home, folder, "--repo", NAME)
    assert done.returncode == 0, done.stderr
    card = server.repos[NAME].files["README.md"].content.decode()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 5
    out = folder.parent / "vectors.npz"
    script = SCRIPT.format(blocks="\n".join(blocks), name=NAME, texts=TEXTS, query=QUERY, out=str(out))
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=environment(server, folder.parent / "reader"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    with np.load(out) as file:
        return dict(file), json.loads(ran.stdout.splitlines()[-1])


def test_vectors_are_bit_equal_to_those_of_the_folder(
    folder: Path, loaded: tuple[dict[str, np.ndarray], dict[str, str]]
) -> None:
    vectors, said = loaded
    here = ThinkingEmbedder.from_pretrained(folder, device="cpu", cache=False)
    assert said["space"] == here.space.fingerprint
    assert np.array_equal(vectors["ours_0"], here.encode_documents(TEXTS))
    assert np.array_equal(vectors["ours_1"], here.encode_queries([QUERY]))
    fast = here.encode_queries([QUERY], settings=ThoughtSettings(thinking="never"))
    assert np.array_equal(vectors["ours_2"], fast)
    # The guard lets nothing pass that random weights have written.
    bold = here.encode_queries([QUERY], settings=here.settings.with_changes(guard=False))
    assert np.array_equal(vectors["ours_3"], bold)
    assert not np.allclose(bold, fast, atol=1e-3)


@pytest.mark.parametrize("framework", ["langchain", "llama_index"])
def test_frameworks_give_the_same_vectors(
    framework: str, loaded: tuple[dict[str, np.ndarray], dict[str, str]]
) -> None:
    vectors, _ = loaded
    assert np.array_equal(vectors[f"{framework}_0"], vectors["ours_0"])
    assert np.array_equal(vectors[f"{framework}_1"], vectors["ours_1"])


def test_plain_sentence_transformers_gives_documents_and_fast_queries(
    loaded: tuple[dict[str, np.ndarray], dict[str, str]],
) -> None:
    vectors, _ = loaded
    assert np.allclose(vectors["plain_0"], vectors["ours_0"], atol=1e-5)
    assert np.allclose(vectors["plain_1"], vectors["ours_2"], atol=1e-5)


def test_a_folder_of_the_repository_is_loaded_alone(
    folder: Path, loaded: tuple[dict[str, np.ndarray], dict[str, str]]
) -> None:
    vectors, _ = loaded
    other = ThinkingEmbedder.from_pretrained(folder / "nf4", device="cpu", cache=False)
    assert np.array_equal(vectors["four_0"], other.encode_documents(TEXTS))
    assert not np.allclose(vectors["four_0"], vectors["ours_0"], atol=1e-3)


def test_the_weights_of_a_folder_are_not_loaded_with_the_others(server: HubServer, folder: Path) -> None:
    script = f"from o1_retriever.engine.checkpoint import find_folder as f; f({NAME!r})"
    before = server.seen.copy()
    empty = environment(server, folder.parent / "third")
    subprocess.run([sys.executable, "-c", script], env=empty, check=True, timeout=250)
    assert not [path for (_, path) in server.seen - before if path.endswith("/nf4/model.safetensors")]
