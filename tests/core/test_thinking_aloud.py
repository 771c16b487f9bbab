"""Thoughts piece by piece while they are written, from the local thinker and from a model that does both."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.errors import InputError, ThinkerError
from o1_retriever.thought import Thought
from tests.support.adapters import bag_of_words
from tests.support.tiny import tiny_model
from tests.support.writers import writer

WARM = ThoughtSettings(n_thoughts=3, temperature=1.0, max_new_tokens=12)


def embedders(folder: Path | bool = False) -> dict[str, ThinkingEmbedder]:
    return {
        "pair": ThinkingEmbedder.from_parts(writer(), bag_of_words, settings=WARM, cache=folder),
        "both": ThinkingEmbedder.from_model(*tiny_model("llama"), settings=WARM, cache=folder),
    }


def visible(text: str) -> str:
    return "".join(character for character in text if character.isprintable())


@pytest.mark.parametrize("kind", ["pair", "both"])
def test_the_pieces_are_the_text_and_the_thought_comes_whole_in_the_end(kind: str, tmp_path: Path) -> None:
    embedder = embedders(tmp_path)[kind]
    pieces = list(embedder.stream_thoughts("why?"))
    [written] = embedders()[kind].think(["why?"])
    assert [piece.thought for piece in pieces[-3:]] == written
    assert all(piece.thought is None for piece in pieces[:-3])
    for index, thought in enumerate(written):
        own = [piece.text for piece in pieces if piece.index == index]
        assert len(own) > 3
        # A thought loses what cannot be shown, which its pieces still have.
        assert visible(thought.text) in visible("".join(own))
    # They take turns: the second has begun before the first has ended.
    order = [piece.index for piece in pieces[:-3]]
    assert order.index(1) < len(order) - order[::-1].index(0)
    # What is in the cache is one piece each.
    again = list(embedder.stream_thoughts("why?"))
    assert [(piece.index, piece.text) for piece in again] == [(i, t.text) for i, t in enumerate(written)]
    assert all(piece.thought is not None and piece.thought.cached for piece in again)


def test_whoever_leaves_ends_the_writing() -> None:
    embedder = ThinkingEmbedder.from_parts(writer(), bag_of_words, cache=False)
    long = ThoughtSettings(n_thoughts=1, temperature=1.0, max_new_tokens=400)
    steps: list[int] = []
    hook = embedder.backend.thinker.local.model.register_forward_hook(lambda *_: steps.append(1))  # type: ignore
    before = set(threading.enumerate())
    stream = embedder.stream_thoughts("why?", settings=long)
    next(stream)
    [writing] = set(threading.enumerate()) - before
    stream.close()  # type: ignore[attr-defined]
    writing.join()
    assert len(steps) < 200, "half of what would have been written"
    hook.remove()
    assert embedder.think(["why?"], settings=WARM)[0]


def test_a_thinker_that_writes_elsewhere_gives_whole_thoughts_and_its_errors() -> None:
    plain = ThinkingEmbedder.from_parts(
        lambda queries, n: [["so"] * n for _ in queries], bag_of_words, cache=False
    )
    assert [(p.index, p.text) for p in plain.stream_thoughts("why?")] == [(0, "so"), (1, "so"), (2, "so")]

    def broken(queries: Any, n: int) -> Any:
        return [["so"]]

    with pytest.raises(ThinkerError):
        list(ThinkingEmbedder.from_parts(broken, bag_of_words, cache=False).stream_thoughts("why?"))
    with pytest.raises(InputError):
        plain.stream_thoughts(" ")


def test_characters_of_several_tokens_come_whole() -> None:
    from o1_retriever.engine.follow import Spoken
    from tests.support.tiny import byte_tokenizer

    tokenizer = byte_tokenizer(None)
    heard: list[str] = []
    spoken = Spoken(tokenizer, lambda place, index, text: heard.append(text))
    for token in tokenizer(" é–a")["input_ids"]:
        spoken.written(0, 0, [token], None)
    spoken.written(0, 0, tokenizer("ß")["input_ids"][:1], "length")
    assert heard == ["é", "–", "a", "\ufffd"]
    assert Thought(text="").text == ""
