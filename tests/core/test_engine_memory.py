"""Large blocks of memory that are kept from one use to the next."""

from __future__ import annotations

import errno
import mmap

import numpy as np
import pytest
import torch

from o1_retriever import ThinkingEmbedder, ThoughtSettings
from o1_retriever.engine import steps
from o1_retriever.engine.steps import Memory, Shared
from tests.support.tiny import tiny_model

MIB = 1 << 20
linux = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no huge pages to ask for"
)


def taken(source: Memory, mib: int) -> tuple[torch.Tensor, mmap.mmap | None]:
    return source.empty((mib, MIB // 4), torch.float32)


def kept(source: Memory) -> int:
    return sum(size * len(idle) for size, idle in source._idle.items()) // MIB


@linux
def test_a_block_is_used_again_only_once_it_is_given_back():
    source = Memory()
    first, block = taken(source, 4)
    second, other = taken(source, 4)
    assert first.data_ptr() != second.data_ptr()
    source.give_back([block])
    third, again = taken(source, 4)
    assert again is block
    assert third.data_ptr() == first.data_ptr()
    assert taken(source, 4)[0].data_ptr() not in (second.data_ptr(), third.data_ptr())
    assert other is not block


@linux
def test_no_more_is_kept_than_allowed_and_what_is_wanted_now_goes_first(monkeypatch):
    monkeypatch.setattr(steps, "_KEPT", 10 * MIB)
    source = Memory()
    small, large = [taken(source, 2)[1] for _ in range(4)], [taken(source, 4)[1] for _ in range(4)]
    source.give_back(small)
    assert kept(source) == 8
    source.give_back(large)
    assert kept(source) == 8
    assert set(source._idle) == {4 * MIB}
    source.give_back([taken(source, 20)[1]])
    assert kept(source) <= 10


@linux
def test_every_element_can_be_written_in_any_type():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        tensor, block = Memory().empty((3, 700_001), dtype)
        assert block is not None
        assert len(block) % (2 * MIB) == 0
        tensor.fill_(2)
        assert tensor.shape == (3, 700_001)
        assert bool((tensor == 2).all())


@linux
def test_thoughts_in_kept_memory_are_those_of_fresh_memory(monkeypatch):
    model, tokenizer = tiny_model("qwen2")
    embedder = ThinkingEmbedder.from_model(model, tokenizer, cache=False)
    how = ThoughtSettings(n_thoughts=3, temperature=1.0, max_new_tokens=16)
    asked = ["a", "why is the sky blue?", "x" * 70]
    fresh = embedder.embed_queries(asked, settings=how)
    monkeypatch.setattr(steps, "_PAGE", mmap.PAGESIZE)
    for turn in range(3):
        for found, expected in zip(embedder.embed_queries(asked, settings=how), fresh, strict=True):
            assert [t.text for t in found.thoughts] == [t.text for t in expected.thoughts]
            np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-5)
        assert embedder.backend.local.once(Shared)._memory._idle, turn
        asked, fresh = asked[1:] + asked[:1], fresh[1:] + fresh[:1]


@linux
def test_a_system_that_refuses_huge_pages_gives_usual_ones(monkeypatch):
    class Refusing(mmap.mmap):
        def madvise(self, *_arguments):
            raise OSError(errno.EINVAL, "built without huge pages")

    monkeypatch.setattr(steps.mmap, "mmap", Refusing)
    tensor, block = taken(Memory(), 4)
    assert isinstance(block, Refusing)
    tensor.fill_(2)
    assert bool((tensor == 2).all())


def test_small_tensors_come_from_torch():
    tensor, block = Memory().empty((2, 3), torch.float32)
    assert tensor.shape == (2, 3)
    assert block is None
    Memory().give_back([block])
