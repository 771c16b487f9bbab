"""The way that made o1-embedder-135m: its Llama against transformers', its rewards, the whole in small."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

from o1_embedder_135m.language import Adapter, Sampler, Shape, Trainer, ends
from o1_embedder_135m.make import main
from o1_embedder_135m.passages import SOURCES, Question, answer, piece, read_collection
from o1_embedder_135m.search import Index, fused, golds, ndcg, penalty, ranks, rewards
from o1_retriever import ThinkingEmbedder
from o1_retriever.encoders import as_encoder
from o1_retriever.ranking.bm25 import Bm25
from o1_retriever.ranking.ranking import fuse
from tests.support.adapters import bag_of_words
from tests.support.tiny import CONFIGS, byte_tokenizer

END = 7


@pytest.fixture
def llama() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS["llama"](80), dtype=torch.float32).eval()


def adapted(model: Any) -> Adapter:
    adapter = Adapter(model, rank=4, alpha=8, seed=0)
    with torch.no_grad():
        for each in adapter.b.values():
            each.normal_(std=0.1)
    return adapter


def with_peft(model: Any, adapter: Adapter) -> Any:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(Adapter.NAMES), task_type="CAUSAL_LM")
    found = get_peft_model(model, config)
    set_peft_model_state_dict(found, adapter.named())
    return found


def test_loss_and_gradients_are_those_of_a_transformers_llama_with_peft(llama: Any) -> None:
    adapter, shape = adapted(llama), Shape.of(llama.config, END)
    rows = [([5, 6, 8], [9, 10, END]), ([11] * 12, [12, END]), ([13] * 30, [14, 15, 16, END])]
    weights, temperature = [0.5, -0.25, 1.0], 0.8
    trainer = Trainer(shape, adapter, 64)
    trainer.start()
    loss = trainer.add(rows, weights, temperature)
    reference = with_peft(llama, adapter)
    expected = torch.zeros(())
    for (prompt, said), weight in zip(rows, weights, strict=True):
        logits = reference(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1] / temperature
        expected = expected + weight * F.cross_entropy(logits, torch.tensor(said), reduction="sum")
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-4)
    for name, parameter in reference.named_parameters():
        if "lora_" in name:
            kind = adapter.a if "lora_A" in name else adapter.b
            parts = name.split(".")
            found = kind[parts[6]].grad[int(parts[4])]
            torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-4)


def test_rows_are_learned(llama: Any) -> None:
    adapter, said = Adapter(llama, rank=4, alpha=8, seed=0), []
    rows = [([5, 6, 8], [9 + n % 4, END]) for n in range(8)]
    trainer = Trainer(Shape.of(llama.config, END), adapter, 128)
    trainer.teach(rows, tokens=256, rate=1e-2, passes=20, seed=0, say=said.append)
    assert float(said[-1].split()[-1]) < 2.5


def test_the_sampler_writes_what_transformers_writes_and_reads_the_same_states(llama: Any) -> None:
    adapter, shape = adapted(llama), Shape.of(llama.config, END)
    weights = adapter.frozen()
    sampler = Sampler(shape, Adapter(llama, rank=4, alpha=8, seed=1).frozen(), 4)
    sampler.load(weights)
    draw = Random(0)
    prompts = [[draw.randrange(8, 80) for _ in range(draw.randint(2, 14))] for _ in range(6)]
    found = sampler.write(prompts, 12, 1e-4, 0.5, (8, 14))
    again = sampler.write(prompts, 12, 1e-4, 0.5, (8, 14))
    assert found == again
    reference = with_peft(llama, adapter)
    with torch.no_grad():
        for prompt, (ids, ended) in zip(prompts, found, strict=True):
            made = reference.generate(
                input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=12, do_sample=False, eos_token_id=END, pad_token_id=0,
            )[0, len(prompt) :].tolist()  # fmt: skip
            assert (ids, ended) == ((made[:-1], True) if made[-1] == END else (made, False))
        states = ends(shape, weights, prompts, at_once=4)
        for prompt, state in zip(prompts, states, strict=True):
            whole = reference(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1]
            torch.testing.assert_close(state, whole[0, -1], rtol=1e-3, atol=1e-3)


def test_no_more_is_drawn_from_than_top_p(llama: Any) -> None:
    weights = Adapter(llama, rank=4, alpha=8, seed=0).frozen()
    sampler = Sampler(Shape.of(llama.config, END), weights, 256)
    with torch.no_grad():
        shares = torch.softmax(llama(torch.tensor([[9, 20]])).logits[0, -1] / 2, -1).sort(descending=True)
    counted = int((shares.values.cumsum(0) - shares.values < 0.6).sum())
    written = sampler.write([[9, 20]] * 256, 1, 2.0, 0.6, (4,))
    assert {ids[0] if ids else END for ids, _ in written} <= {*shares.indices[:counted].tolist()}
    assert len({*map(str, written)}) > 1


THINGS = "prism refracts light;magnet attracts iron;kettle boils water;frost covers glass;yeast raises dough"


def write_data(folder: Path) -> Path:
    def lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())

    facts = [f"{thing} in room {n}" for n, thing in enumerate(THINGS.split(";") * 2)]
    for name, source in SOURCES.items():
        root = folder / "eval" / name
        title = "" if source.asks.startswith("a science") else "The house"
        documents = [{"_id": f"d{n}", "title": title, "text": text} for n, text in enumerate(facts)]
        lines(root / "corpus.jsonl", documents)
        queries = [{"_id": f"q{n}", "text": f"Where {text.split()[0]} {n}?"} for n, text in enumerate(facts)]
        lines(root / "queries.jsonl", queries)
        (root / "qrels").mkdir()
        judged = "".join(f"q{n}\td{n}\t1\n" for n in range(4))
        (root / "qrels" / f"{source.dev or 'test'}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
        train = [{"query": each["text"], "pos": [facts[n]]} for n, each in enumerate(queries)]
        if source.train:
            lines(folder / "train" / f"{source.train}.jsonl.gz", train)
            expert = [{"text": queries[n]["text"], "thoughts": ["It is warm."]} for n in (2, 5)]
            lines(folder / "expert_thoughts" / f"{name}.train.jsonl", expert)
    for name in ("squad_nqg_sentences", "qamr"):
        lines(folder / "train" / f"{name}.jsonl.gz", [{"query": "Who?", "pos": ["somebody"]}])
    (folder / "text").mkdir()
    return folder


def test_what_is_kept_out_is_neither_taught_nor_rewarded(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    for name, source in SOURCES.items():
        found = read_collection(data, name)
        if source.dev is None:
            assert not found.dev
            assert not found.train
            continue
        assert [each.passages for each in found.dev] == [[n] for n in range(4)]
        assert {each.text for each in found.dev} & {each.text for each in found.train} == set()
        assert len(found.train) == 6
        assert [each.text for each in found.taught if each.thoughts] == ["Where prism 5?"]
        said = piece(found, 1, Random(0))
        assert said == f"{'The house. ' if found.titles[1] else ''}magnet attracts iron in room 1."
        assert len(answer(found, [0, 1, 2, 3], Random(0)).split()) <= 44


@pytest.fixture
def index(tmp_path: Path) -> Index:
    found = read_collection(write_data(tmp_path), "entailmentbank")
    return Index(found, as_encoder(bag_of_words), tmp_path / "vectors")


def test_a_thought_that_names_the_passage_is_worth_more_than_anothers(index: Index) -> None:
    questions = [Question("What bends rays?", [0]), Question("What pulls nails?", [1])]
    own, other = "prism refracts light in room 0.", "magnet attracts iron in room 1."
    torch.manual_seed(0)
    vectors = index.embed([each.text for each in questions])
    found, gain = rewards(index, questions, vectors, [own, other, own, own, other, own, other, other])
    assert min(found[0][[0, 2, 3]]) > found[0][1]
    assert min(found[1][[0, 2, 3]]) > found[1][1]
    assert gain > 0


def test_scores_ranks_and_both_together_are_those_of_the_product(index: Index) -> None:
    texts = ["prism light prism", "", "nothing known", "iron in the kettle"]
    expected = np.stack([Bm25(index.collection.texts).scores(text) for text in texts])
    np.testing.assert_allclose(index.lexical(texts).cpu(), expected, rtol=1e-5, atol=1e-6)
    torch.manual_seed(0)
    dense, lexical = (
        torch.rand(4, 30),
        (torch.rand(4, 30) - torch.tensor([[0.9], [0.2], [2.0], [0.5]])).relu(),
    )
    for depth in (6, 30):
        both = fused(dense, lexical, depth)
        for row in range(4):
            some = [
                sorted(enumerate(each[row].tolist()), key=lambda pair: -pair[1]) for each in (dense, lexical)
            ]
            words = {place: score for place, score in some[1][:depth] if score > 0}
            for place, score in fuse(dict(some[0][:depth]), words, depth).items():
                assert both[row, place].item() == pytest.approx(score, abs=1e-4)
    gold = golds([Question("", [2]), Question("", [0, 3])])
    order = ranks(torch.tensor([[3.0, 2, 1, 0], [1, 3, 2, 0]]), gold)
    assert order[0, 0] == 2
    assert order[1].tolist() == [2, 3]
    ideal = 1 + 1 / np.log2(3)
    expected = [1 / np.log2(4), (1 / np.log2(4) + 1 / np.log2(5)) / ideal]
    np.testing.assert_allclose(ndcg(order), expected, rtol=1e-5)


def test_a_thought_pays_for_its_form() -> None:
    assert penalty("Light bends in glass.", True, 6) == 0
    assert penalty("Light bends in glass", True, 6) == pytest.approx(-0.15)
    assert penalty("Light bends in glass", False, 48) == pytest.approx(-0.3 - 0.032)
    assert penalty("Light bends.", True, 3) == pytest.approx(-0.5)
    assert penalty("the light the light bends.", True, 6) == pytest.approx(-0.3)
    assert penalty("Light bends. It does. Light bends.", True, 9) == pytest.approx(-0.2)


@pytest.mark.long
def test_the_whole_way_ends_with_a_thinker_and_missing_data_is_said(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(None)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    base = tmp_path / "base"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"](len(tokenizer)), dtype=torch.float32)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    options = ["--quick", "--base", str(base), "--work", str(tmp_path / "work"), "--data"]
    with pytest.raises(SystemExit, match="Training data not found"):
        main([*options, str(tmp_path / "nowhere")], as_encoder(bag_of_words))
    made = main([*options, str(write_data(tmp_path / "data"))], as_encoder(bag_of_words))
    assert {path.name for path in made.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "o1_thinker.json",
        "o1_correction.safetensors",
    }  # fmt: skip
    embedder = ThinkingEmbedder.from_parts(str(made), bag_of_words, cache=False)
    assert np.isfinite(embedder.embed_query("Where is the prism?").vector).all()
    log = (tmp_path / "work" / "log.txt").read_text()
    assert all(each in log for each in ("words, mean gain", "best, mean gain", "rewarded, mean gain"))
