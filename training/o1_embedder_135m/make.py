"""Make o1-embedder-135m: questions, the words of the indexes, the best rows, reward, correction.

```
PYTHONPATH=training python -m o1_embedder_135m.make --data ../shared/data --work build/o1-embedder-135m
```

Minutes on a large GPU. `--quick` goes the whole way with two layers, few rows and few steps; the model that
comes out is no good. There is no resume; the adapters `taught` and `rewarded` are written on the way.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from o1_embedder_22m.sources import require_data
from o1_embedder_135m.language import (
    DEVICE,
    Adapter,
    Row,
    Sampler,
    Shape,
    Trainer,
    Weights,
    ends,
    last_states,
)
from o1_embedder_135m.passages import (
    SOURCES,
    Pair,
    Question,
    answer,
    asker_pairs,
    asking,
    best_pairs,
    read_collection,
    word_pairs,
)
from o1_embedder_135m.search import (
    Index,
    contrast,
    fused,
    golds,
    ndcg,
    penalty,
    ranks,
    rewards,
    unit,
    with_thoughts,
)
from o1_retriever.encoders import Encoder, SentenceTransformerEncoder
from o1_retriever.engine.load import LoadOptions, load_causal_lm
from o1_retriever.evaluation.comparison import randomisation_test
from o1_retriever.thinkers.config import Correction as Matrix
from o1_retriever.thinkers.config import ThinkerConfig
from o1_retriever_training.joint.layouts import set_chat
from o1_retriever_training.joint.model import Correction
from o1_retriever_training.saving import save_thinker

BASE, ENCODER = "HuggingFaceTB/SmolLM2-135M-Instruct", "sentence-transformers/all-MiniLM-L6-v2"
SETTINGS = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 48, "query_weight": 1.0}
RANK, ALPHA = 32, 64
READ = 96  # ids of a prompt whose last state is a vector
Questions = Mapping[str, Sequence[Question]]  # by collection


@dataclass(frozen=True)
class Plan:
    """How much of everything. `None` is all there is."""

    layers: int | None = None
    documents: int | None = None
    rows: int | None = None  # of a phase, and questions of a collection to choose by
    others: int = 9000  # questions of other data
    micro: int = 16384  # padded tokens of a forward
    sampled: int = 2048  # thoughts at once
    thoughts: int = 16  # of a rewarded question
    words: int = 48  # tokens of a thought
    draws: int = 3  # triples of thoughts of an evaluation
    joint_steps: int = 30
    retrieved: int = 512  # questions of such a step, and of a step of policy gradient 3 in 8 of them
    steps: int = 113  # of policy gradient
    look: int = 30  # of these between two evaluations
    share: float = 1.0  # of the questions of such a step
    corrected: int = 1500  # questions of a collection
    correction_steps: int = 1600
    judged: int = 100  # of these between two judgments


QUICK = Plan(
    layers=2, documents=400, rows=24, others=8, micro=1024, sampled=16, thoughts=6, words=8, draws=1,
    joint_steps=2, retrieved=16, steps=2, look=2, share=0.08, corrected=4, correction_steps=4, judged=2,
)  # fmt: skip


class _Asked(NamedTuple):
    """Questions about an index: their prompts, the encoder's vectors [Q, dimension], passages [Q, w]."""

    prompts: list[list[int]]
    vectors: Tensor
    gold: Tensor


class Maker:
    """The phases, in the order of their names in `make`, and what they share."""

    def __init__(self, data: Path, work: Path, plan: Plan, base: str, encoder: Encoder) -> None:
        torch.manual_seed(0)
        self.data, self.work, self.plan, self.base = data, work, plan, base
        self.draw, self._began = Random(0), monotonic()
        loaded = load_causal_lm(base, LoadOptions(device="cpu", dtype="float32"))
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        if plan.layers:
            self.model.model.layers = self.model.model.layers[: plan.layers]
        set_chat(self.tokenizer)
        turn = [{"role": "user", "content": "{query}"}]
        rendered = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        self._head, self._tail = rendered.split("{query}")
        self.shape = Shape.of(self.model.config, self.tokenizer.convert_tokens_to_ids("<|im_end|>"))
        found = [read_collection(data, name, plan.documents) for name in SOURCES]
        for each in found:
            each.dev = each.dev[: plan.rows]
        self.indexes = {each.name: Index(each, encoder, work / "vectors") for each in found}
        self.collections = found
        self.adapter = Adapter(self.model, rank=RANK, alpha=ALPHA, seed=0)
        self.trainer = Trainer(self.shape, self.adapter, plan.micro)
        self.sampler = Sampler(self.shape, self.adapter.frozen(), plan.sampled)
        width, dimension = self.model.config.hidden_size, self.indexes["scifact"].documents.shape[1]
        self.matrix = Correction(width, dimension, 64, seed=1).to(DEVICE)
        self._matrix_optimiser = torch.optim.AdamW(self.matrix.parameters(), weight_decay=1e-2)

    def say(self, what: str) -> None:
        """Print a line, and keep it."""
        line = f"[{monotonic() - self._began:7.1f}] {what}"
        print(line, flush=True)
        with (self.work / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def prompts(self, asked: Sequence[str]) -> list[list[int]]:
        """The ids of a chat that asks."""
        texts = [f"{self._head}{each}{self._tail}" for each in asked]
        return list(self.tokenizer(texts, add_special_tokens=False).input_ids) if texts else []

    def tails(self, asked: Sequence[str]) -> list[list[int]]:
        """The ends of these prompts, as long as one is read for its last state."""
        return [ids[-READ:] for ids in self.prompts(asked)]

    def rows(self, pairs: Sequence[Pair]) -> list[Row]:
        """Pairs as ids: the end of the prompt, the beginning of what is written, and the end of the turn."""
        pairs = pairs if self.plan.rows is None else self.draw.sample(pairs, min(len(pairs), self.plan.rows))
        written = self.tokenizer([said for _, said in pairs], add_special_tokens=False).input_ids
        asked = self.prompts([query for query, _ in pairs])
        return [(a[-120:], [*w[:88], self.shape.end]) for a, w in zip(asked, written, strict=True)]

    def write(
        self, weights: Weights, asked: Sequence[str], *, temperature: float, top_p: float,
        widths: tuple[int, ...] = (96,),
    ) -> tuple[list[str], list[bool], list[list[int]]]:  # fmt: skip
        """Texts, whether each ended by itself, and their ids."""
        self.sampler.load(weights)
        found = self.sampler.write(self.prompts(asked), self.plan.words, temperature, top_p, widths)
        texts = self.tokenizer.batch_decode([ids for ids, _ in found], skip_special_tokens=True)
        return [text.strip() for text in texts], [ended for _, ended in found], [ids for ids, _ in found]

    def questions(self) -> tuple[Questions, Questions]:
        """Train an asker, and let it ask about every passage, or it and a neighbour: to teach, and to reward.

        Taught is what finds its passages well (65 %), rewarded what finds them, and not at once.
        """
        asker = Adapter(self.model, rank=64, alpha=128, seed=5)
        pairs = asker_pairs(self.collections, self.data, self.draw, self.plan.others)
        trainer = Trainer(self.shape, asker, self.plan.micro)
        trainer.teach(self.rows(pairs), tokens=16384, rate=1e-3, passes=2, seed=1, say=self.say)
        weights = asker.frozen()
        taught: dict[str, list[Question]] = {}
        rewarded: dict[str, list[Question]] = {}
        for name, index in self.indexes.items():
            made = self._asked(index, weights)
            taught[name], rewarded[name], draw = [], [], Random(3)
            for question, worst in made:
                if draw.random() < 0.65:
                    taught[name] += [question] * (worst <= 30)
                else:
                    rewarded[name] += [question] * (1 <= worst <= 200)
            self.say(
                f"{name}: {len(made)} questions, {len(taught[name])} taught, {len(rewarded[name])} rewarded"
            )
        return taught, rewarded

    def _asked(self, index: Index, weights: Weights) -> list[tuple[Question, float]]:
        """Questions about a collection's passages, with the worst rank of these by vectors and BM25."""
        near, draw, found = index.neighbours().tolist(), self.draw, []
        about = draw.sample(range(len(near)), min(len(near), self.plan.rows or len(near)))
        for place in about:
            two = draw.random() < index.collection.source.two
            found.append([place, draw.choice(near[place])] if two else [place])
        asked = [asking(index.collection, places, draw) for places in found]
        texts, ended, _ = self.write(weights, asked, temperature=0.8, top_p=0.95, widths=(80, 144))
        made = [
            Question(text, places)
            for text, end, places in zip(texts, ended, found, strict=True)
            if self.plan.rows or (end and len(text.split()) >= 4)
        ]
        worst: list[float] = []
        for first in range(0, len(made), 4096):
            part = made[first : first + 4096]
            said = [each.text for each in part]
            scores = fused(index.dense(index.embed(said)), index.lexical(said))
            worst += ranks(scores, golds(part, 2)).nan_to_num(-1).amax(1).tolist()
        return list(zip(made, worst, strict=True))

    @torch.no_grad()
    def evaluate(self, label: str, draws: int) -> float:
        """The mean gain over dev of vectors and of both together by three thoughts; prints every figure."""
        weights, gains = self.adapter.frozen(), []
        for index in self.indexes.values():
            if index.collection.dev:
                gains.append(self._evaluate(label, index, weights, draws))
        score = float(np.mean(gains)) if gains else 0.0
        self.say(f"{label}, mean gain {score:.4f}")
        return score

    def _evaluate(self, label: str, index: Index, weights: Weights, draws: int) -> float:
        dev, gold = index.collection.dev, golds(index.collection.dev)
        asked = [each.text for each in dev]
        own = self.corrected(index, asked, weights), index.lexical(asked)
        many = [text for text in asked for _ in range(3 * draws)]
        texts, ended, _ = self.write(weights, many, temperature=0.7, top_p=0.9)
        # Another's thoughts are the first three of the question before it in a random circle.
        circle = np.random.default_rng(0).permutation(len(dev))
        other = dict(zip(circle.tolist(), np.roll(circle, 1).tolist(), strict=True))
        lent = [texts[3 * draws * other[place] + k] for place in range(len(dev)) for k in range(3)]

        def measured(scores: tuple[Tensor, Tensor]) -> Tensor:
            """NDCG@10 by vectors, BM25 and both, [3, Q]."""
            return torch.stack([ndcg(ranks(each, gold)) for each in (*scores, fused(*scores))])

        def thinking(texts: Sequence[str]) -> Tensor:
            """The mean of it over draws of three thoughts a question."""
            both = [f"{q} {t}" for q, t in zip(np.repeat(asked, len(texts) // len(dev)), texts, strict=True)]
            said = index.embed(both), index.lexical(texts)
            means = [x.view(len(dev), -1, 3, x.shape[-1]).mean(2).unbind(1) for x in said]
            draws = zip(*means, strict=True)
            return torch.stack([measured(with_thoughts(index, own, one)) for one in draws]).mean(0)

        none, fast = (measured((index.dense(each), own[1])) for each in (index.embed(asked), own[0]))
        mine, theirs = thinking(texts), thinking(lent)
        line = {
            key: [*(round(x.mean().item(), 4) for x in row), _p(row[0], row[2])]
            for key, *row in zip(("dense", "bm25", "both"), none, fast, mine, theirs, strict=True)
        }
        self.say(
            f"{label}, {index.collection.name}, [none, fast, thoughts, another's, p]: {json.dumps(line)}"
        )
        self.say(f"{np.mean(ended):.1%} of the thoughts end, for example {texts[0]!r}")
        return (mine - none)[[0, 2]].mean().item()

    def _asked_of(self, pools: Questions) -> dict[str, _Asked]:
        """What a step of `_retrieve` needs of questions, prepared once."""
        found = {}
        for name, pool in pools.items():
            texts = [each.text for each in pool]
            found[name] = _Asked(self.tails(texts), self.indexes[name].embed(texts), golds(pool, 6))
        return found

    def _retrieve(self, pools: Mapping[str, _Asked], count: int, weight: float = 1.0) -> Tensor:
        """Add the gradient of the contrastive loss of about `count` questions; returns the loss.

        A question's vector is the encoder's and W of the state at the end of its prompt. It is compared with
        every document of the index.
        """
        roots, drawn, rows = {name: len(pool.gold) ** 0.5 for name, pool in pools.items()}, {}, []
        for name, pool in pools.items():
            many = min(len(pool.gold), max(4, round(count * roots[name] / sum(roots.values()))))
            drawn[name] = torch.randint(len(pool.gold), (many,)).tolist()
            rows += [pool.prompts[place] for place in drawn[name]]
        states = last_states(self.shape, self.adapter.weights(), rows)
        parts = self.matrix(states).split([*map(len, drawn.values())])
        loss = torch.zeros((), device=DEVICE)
        for (name, places), part in zip(drawn.items(), parts, strict=True):
            vectors = unit(pools[name].vectors[places] + part)
            loss = loss + contrast(self.indexes[name].dense(vectors), pools[name].gold[places]) / len(pools)
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _remember(self, words: Sequence[Row], weight: float) -> None:
        """Add the gradient of some rows of words, so that what stands in the indexes is not forgotten."""
        again = self.draw.sample(words, min(256, len(words)))
        self.trainer.add(again, [weight / sum(len(ids) for _, ids in again)] * len(again))

    def _step(self, rate: float, matrix_rate: float) -> None:
        """One step of the weights and of W."""
        self._matrix_optimiser.param_groups[0]["lr"] = matrix_rate
        self._matrix_optimiser.step()
        self._matrix_optimiser.zero_grad()
        self.trainer.step(rate)

    @torch.no_grad()
    def corrected(self, index: Index, asked: Sequence[str], weights: Weights) -> Tensor:
        """The vectors of questions alone, corrected."""
        return unit(index.embed(asked) + self.matrix(ends(self.shape, weights, self.tails(asked))))

    def joint(self, pools: Mapping[str, _Asked], words: Sequence[Row], rate: float = 2e-4) -> None:
        """Learn to find passages by the state at a question's end, and go on writing."""
        self.trainer.start()
        for step in range(self.plan.joint_steps):
            loss = self._retrieve(pools, self.plan.retrieved)
            self._remember(words, 0.5)
            fall = min(1.0, (step + 1) / 10) * max(0.1, 1 - step / self.plan.joint_steps)
            self._step(rate * fall, 2e-3 * fall)
            if step % 50 == 49 or step + 1 == self.plan.joint_steps:
                self.say(f"joint, step {step + 1} of {self.plan.joint_steps}, loss {loss.item():.3f}")

    def reinforce(
        self, pools: Questions, taught: Mapping[str, _Asked], words: Sequence[Row], rate: float = 3e-4
    ) -> None:
        """Policy gradient: each thought against the mean of its question's; retrieval and words beside it."""
        self.trainer.start(betas=(0.9, 0.95))
        kept, best = None, -1.0
        for step in range(self.plan.steps):
            rows, weights, gains = self._rewarded(pools)
            learned = sum(len(ids) for _, ids in rows)
            self.trainer.add(rows, [each / learned for each in weights], 0.8)
            self._remember(words, 0.2)
            self._retrieve(taught, self.plan.retrieved * 3 // 8, 0.3)
            fall = min(1.0, (step + 1) / 8) * max(0.1, 1 - step / self.plan.steps)
            self._step(rate * fall, 5e-4 * fall)
            if step % 10 == 9 or step + 1 == self.plan.steps:
                self.say(f"step {step + 1} of {self.plan.steps}, gains {json.dumps(gains)}")
            last, parts = step + 1 == self.plan.steps, [*self.adapter.parameters(), *self.matrix.parameters()]
            if last or step % self.plan.look == self.plan.look - 1:
                score = self.evaluate(f"reward, step {step + 1}", min(2, self.plan.draws))
                if last and kept is not None and score < best - 0.0015:
                    for part, value in zip(parts, kept, strict=True):
                        part.data.copy_(value)
                elif score > best:
                    best, kept = score, [each.detach().clone() for each in parts]

    def _rewarded(self, pools: Questions) -> tuple[list[Row], list[float], dict[str, float]]:
        """Rows of sampled thoughts, the advantage of each, and the mean gain by collection.

        Of a question's thoughts the half whose advantage is largest is learned from: it has nearly all of the
        gradient.
        """
        n, gains, rows, weights = self.plan.thoughts, {}, [], []
        chosen: dict[str, list[Question]] = {}
        for name, pool in pools.items():
            count = max(1, round(SOURCES[name].rewarded * self.plan.share))
            chosen[name] = self.draw.sample(pool, min(count, len(pool)))
        asked = [each.text for some in chosen.values() for each in some for _ in range(n)]
        model = self.adapter.frozen()
        texts, ended, ids = self.write(model, asked, temperature=0.8, top_p=0.95)
        prompts, first = self.prompts(asked), 0
        for name, some in chosen.items():
            if not some:
                continue
            part = slice(first, first + n * len(some))
            first, index = part.stop, self.indexes[name]
            vectors = self.corrected(index, [each.text for each in some], model)
            value, gains[name[:4]] = rewards(index, some, vectors, texts[part])
            form = zip(texts[part], ended[part], map(len, ids[part]), strict=True)
            value = value + torch.tensor([penalty(*each) for each in form], device=DEVICE).view_as(value)
            value = value - value.mean(1, keepdim=True)
            value = value / value.std(1, keepdim=True).clamp_min(0.05)
            strong = value.abs() >= value.abs().topk(max(2, n // 2), 1).values[:, -1:]
            advantage = (value * strong).flatten().tolist()
            for prompt, said, end, each in zip(prompts[part], ids[part], ended[part], advantage, strict=True):
                if abs(each) > 1e-4 and said:
                    rows.append((prompt[-120:], said + [self.shape.end] * end))
                    weights.append(each)
        return rows, weights, {name: round(gain, 4) for name, gain in gains.items()}

    def correction(self, pools: Questions, rate: float = 5e-4) -> Matrix:
        """W goes on beside weights that stand, for questions with their thoughts as well; the best on dev.

        The fast vector, of the query alone, learns the thinking one.
        """
        weights = self.adapter.frozen()
        picked = {name: pool[: self.plan.corrected] for name, pool in pools.items() if pool}
        held = {name: index.collection.dev for name, index in self.indexes.items() if index.collection.dev}
        train = {key: (self._states(key, some, weights, 2), golds(some, 6)) for key, some in picked.items()}
        dev = {key: (self._states(key, some, weights, 3), golds(some)) for key, some in held.items()}

        def vectors(states: dict[str, Tensor], places: Any = slice(None)) -> tuple[Tensor, Tensor]:
            """The corrected vectors of queries, alone and with their thoughts."""
            own = unit(states["query vectors"][places] + self.matrix(states["query"][places]))
            return own, unit(own + states["thought vectors"][places].mean(1))

        optimiser = torch.optim.AdamW(self.matrix.parameters(), lr=rate, weight_decay=1e-2)
        kept = self.matrix.exported()
        with torch.no_grad():
            best = self._judged("correction, step 0", dev, vectors)
        for step in range(self.plan.correction_steps):
            optimiser.param_groups[0]["lr"] = rate * max(0.05, 1 - step / self.plan.correction_steps)
            loss = torch.zeros((), device=DEVICE)
            for name, (states, gold) in train.items():
                places = torch.randint(len(gold), (min(256, len(gold)),), device=DEVICE)
                fast, full = vectors(states, places)
                for each in (fast, full):
                    loss = loss + contrast(self.indexes[name].dense(each), gold[places])
                loss = loss + 2 * (1 - (fast * full.detach()).sum(-1)).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if step % self.plan.judged == self.plan.judged - 1:
                with torch.no_grad():
                    score = self._judged(f"correction, step {step + 1}", dev, vectors)
                if score > best:
                    best, kept = score, self.matrix.exported()
        return kept

    def _states(self, name: str, some: Sequence[Question], weights: Weights, n: int) -> dict[str, Tensor]:
        """Vectors and last states of questions [Q, ...], vectors of each with `n` thoughts [Q, n, ...]."""
        asked, index = [each.text for each in some], self.indexes[name]
        many = [text for text in asked for _ in range(n)]
        texts, _, _ = self.write(weights, many, temperature=0.7, top_p=0.9)
        both = [f"{text} {said}" for text, said in zip(many, texts, strict=True)]
        return {
            "query vectors": index.embed(asked),
            "query": ends(self.shape, weights, self.tails(asked)),
            "thought vectors": index.embed(both).view(len(asked), n, -1),
        }

    def _judged(self, label: str, dev: Mapping[str, Any], vectors: Any) -> float:
        """What both corrected vectors gain on dev; prints NDCG@10 of all four."""
        gains = []
        for name, (states, gold) in dev.items():
            own, index = states["query vectors"], self.indexes[name]
            four = own, unit(own + states["thought vectors"].mean(1)), *vectors(states)
            alone, thoughts, fast, full = (ndcg(ranks(index.dense(each), gold)) for each in four)
            gains.append((fast + full - 2 * alone).mean().item())
            line = [round(each.mean().item(), 4) for each in (alone, thoughts, fast, full)]
            self.say(f"{label}, {name}, [alone, thoughts, fast, full]: {line}, p {_p(alone, full)}")
        return float(np.mean(gains)) if gains else 0.0

    def save(self, name: str, correction: Matrix | None = None) -> Path:
        """Write what `LocalThinker` loads."""
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=list(Adapter.NAMES), task_type="CAUSAL_LM"
        )
        adapted = get_peft_model(self.model, config)
        set_peft_model_state_dict(adapted, self.adapter.named())
        kept = ThinkerConfig(settings=SETTINGS, correction=correction)
        folder = save_thinker(self.work / name, adapted, self.tokenizer, kept, base=self.base)
        adapted.unload()
        self.say(f"written: {folder}")
        return folder

    def make(self) -> Path:
        """All phases; returns the folder of the thinker."""
        plan, draw = self.plan, self.draw
        taught, rewarded = self.questions()
        made = [
            (q.text, answer(self.indexes[n].collection, q.passages, draw)) for n in taught for q in taught[n]
        ]
        words = self.rows([*word_pairs(self.collections, draw), *made])
        self.trainer.teach(words, tokens=32768, rate=1.2e-3, passes=3, seed=2, floor=0.25, say=self.say)
        self.evaluate("words", 1)
        best = self.rows([*best_pairs(self.collections, draw), *draw.sample(made, min(5000, len(made)))])
        self.trainer.teach(best, tokens=16384, rate=3e-4, seed=3, say=self.say)
        self.evaluate("best", min(2, plan.draws))
        self.save("taught")
        asked = self._asked_of({name: self._known(index, taught) for name, index in self.indexes.items()})
        self.joint(asked, words)
        pools = {index.collection.name: self._pool(index, rewarded) for index in self.indexes.values()}
        self.reinforce(pools, asked, words)
        self.evaluate("rewarded", plan.draws)
        self.save("rewarded")
        for name, pool in pools.items():
            pool += draw.sample(taught[name], min(3000, len(taught[name])))
            draw.shuffle(pool)
        return self.save("o1-embedder-135m", self.correction(pools))

    def _known(self, index: Index, taught: Questions) -> list[Question]:
        """Questions that are taught: made ones, and those of the train split about two fifths as often."""
        own, made = index.collection.taught, list(taught[index.collection.name])
        return made + own * max(1, round(0.4 * len(made) / max(1, len(own))))

    def _pool(self, index: Index, rewarded: Questions) -> list[Question]:
        """Questions that were never taught: made ones, and those of the train split about as often."""
        own, made = index.collection.rewarded, rewarded[index.collection.name]
        made = self.draw.sample(made, min(len(made), max(2500, len(own))))
        return own * max(1, round(len(made) / max(1, len(own)))) + made


def _p(first: Tensor, second: Tensor) -> float:
    return round(randomisation_test(*(each.double().cpu().numpy() for each in (first, second))), 3)


def main(arguments: Sequence[str] | None = None, encoder: Encoder | None = None) -> Path:
    """Read the options and make the model; `encoder` is another than the option's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with eval/ and train/"
    )
    parser.add_argument("--work", type=Path, default=Path("build/o1-embedder-135m"))
    parser.add_argument("--base", default=BASE, help="a Llama that knows ChatML")
    parser.add_argument("--encoder", default=ENCODER, help="the encoder of the indexes")
    parser.add_argument("--steps", type=int, help=f"of policy gradient (default {Plan.steps})")
    parser.add_argument("--quick", action="store_true", help="a little of everything")
    options = parser.parse_args(arguments)
    require_data(options.data)
    options.work.mkdir(parents=True, exist_ok=True)
    plan = QUICK if options.quick else Plan()
    if options.steps:
        plan = replace(plan, steps=options.steps)
    encoder = encoder or SentenceTransformerEncoder(options.encoder)
    return Maker(options.data, options.work, plan, options.base, encoder).make()


if __name__ == "__main__":
    main()
