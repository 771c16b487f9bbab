"""Everything about a fictional world as files: rows to train on, a collection to measure on, a base model."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fictional_world.questions import Question, Split, candidate_thoughts, split_questions
from benchmarks.fictional_world.world import World, WorldSettings, make_world
from o1_retriever.engine.template import MARKERS, TemplateConfig
from o1_retriever_training.ledger import LedgerError
from o1_retriever_training.rows import TrainingRow

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

POSITIONS = 128  # of the base model
_NEGATIVES = 3
# Greedy, one thought: what the model deploys with, unless a call says otherwise.
TEMPLATE = TemplateConfig(
    layout="paper",
    max_query_tokens=32,
    max_length=POSITIONS,
    settings={"n_thoughts": 1, "temperature": 0.0, "max_new_tokens": 40},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldReport:
    """What was written: `train` and `candidates` are files of rows, `collection` and `base` folders."""

    folder: Path
    settings: WorldSettings
    entities: int
    facts: int
    one_hop: int
    two_hop: int
    dev: int
    test: int
    vocabulary: int
    parameters: int

    @property
    def train(self) -> Path:
        """Rows with the right chain of facts as their thought."""
        return self.folder / "train.jsonl"

    @property
    def candidates(self) -> Path:
        """The same rows with candidates of an expert who errs, and none elected: for a committee."""
        return self.folder / "candidates.jsonl"

    @property
    def collection(self) -> Path:
        """The pages and the held-out questions in BEIR format, with the splits dev and test."""
        return self.folder / "collection"

    @property
    def base(self) -> Path:
        """A random decoder with a tokenizer of words: a recipe's `model.base`."""
        return self.folder / "base"

    def to_dict(self) -> dict[str, Any]:
        """The counts and the settings as JSON values."""
        counts = asdict(self)
        del counts["folder"]
        return counts


def write_world(folder: str | Path, settings: WorldSettings | None = None) -> WorldReport:
    """Write a world: the same settings give the same files, byte for byte.

    Files of an earlier world in that folder are replaced. Raises `LedgerError` where they cannot be written.
    """
    root, settings = Path(folder), settings or WorldSettings()
    world = make_world(settings)
    split = split_questions(world, settings)
    try:
        (root / "collection" / "qrels").mkdir(parents=True, exist_ok=True)
        _write_rows(root, world, split, settings)
        _write_collection(root / "collection", world, split)
        vocabulary, parameters = _write_base(root / "base", world, split, settings)
        report = WorldReport(
            folder=root,
            settings=settings,
            entities=len(world.entities),
            facts=len(split.one_hop),
            one_hop=len(split.one_hop),
            two_hop=len(split.two_hop),
            dev=len(split.dev),
            test=len(split.test),
            vocabulary=vocabulary,
            parameters=parameters,
        )
        _write(root / "world.json", [json.dumps(report.to_dict(), indent=2)])
    except OSError as error:
        raise LedgerError(f"{root} cannot be written: {error.strerror or error}.") from error
    return report


def training_rows(world: World, split: Split, settings: WorldSettings) -> list[TrainingRow]:
    """A row for every question to train on: the answer's page, other pages, the chain as its thought."""
    generator = random.Random(f"negatives {settings.seed}")
    return [_row(world, question, generator) for question in (*split.one_hop, *split.two_hop)]


def _row(world: World, question: Question, generator: random.Random) -> TrainingRow:
    # The pages that the chain leads through are what a search by words finds first, and not the answer.
    near = list(dict.fromkeys(fact.subject for fact in question.chain))
    other = [each for each in world.of_kind(question.answer.kind) if each not in (*near, question.answer)]
    generator.shuffle(other)
    negatives = [*near, *other][:_NEGATIVES]
    return TrainingRow(
        id=question.id,
        query=question.text,
        pos=[world.page(question.answer)],
        neg=[world.page(entity) for entity in negatives],
        type=question.hops,
        all_thought=[question.thought],
        thought=question.thought,
    )


def _write_rows(root: Path, world: World, split: Split, settings: WorldSettings) -> None:
    rows = training_rows(world, split, settings)
    _write(root / "train.jsonl", (row.line().rstrip("\n") for row in rows))
    thoughts = candidate_thoughts(world, [*split.one_hop, *split.two_hop], settings)
    undecided = (
        row.model_copy(update={"all_thought": candidates, "thought": None})
        for row, candidates in zip(rows, thoughts, strict=True)
    )
    _write(root / "candidates.jsonl", (row.line().rstrip("\n") for row in undecided))


def _write_collection(folder: Path, world: World, split: Split) -> None:
    _write_json(
        folder / "corpus.jsonl",
        ({"_id": entity.id, "title": "", "text": world.page(entity)} for entity in world.entities),
    )
    asked = (*split.dev, *split.test)
    _write_json(folder / "queries.jsonl", ({"_id": each.id, "text": each.text} for each in asked))
    for name, questions in (("dev", split.dev), ("test", split.test)):
        lines = [f"{question.id}\t{question.answer.id}\t1" for question in questions]
        _write(folder / "qrels" / f"{name}.tsv", ["query-id\tcorpus-id\tscore", *lines])


def _write_base(folder: Path, world: World, split: Split, settings: WorldSettings) -> tuple[int, int]:
    tokenizer = word_tokenizer(_texts(world, [*split.one_hop, *split.two_hop, *split.dev, *split.test]))
    model = base_model(tokenizer, settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    TEMPLATE.save(folder)
    return len(tokenizer), sum(weight.numel() for weight in model.parameters())


def _texts(world: World, questions: Sequence[Question]) -> list[str]:
    pages = [world.page(entity) for entity in world.entities]
    return [*pages, *(question.text for question in questions), *(each.thought for each in questions)]


def _write_json(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    _write(path, map(json.dumps, rows))


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


EOS, PAD, UNKNOWN = "</s>", "<pad>", "<unk>"


def words_of(texts: Iterable[str]) -> list[str]:
    """Every word and punctuation mark of the texts once, in alphabetical order."""
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text)})


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows the words of these texts; any other becomes `<unk>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: place for place, word in enumerate([UNKNOWN, PAD, EOS, *words_of(texts)])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)  # no space before a full stop
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token=UNKNOWN, pad_token=PAD, eos_token=EOS
    )
    fast.add_special_tokens({"extra_special_tokens": list(MARKERS["paper"])})
    return fast


def base_model(tokenizer: PreTrainedTokenizerFast, settings: WorldSettings) -> LlamaForCausalLM:
    """A model that knows nothing yet, drawn from the seed; torch's own generator is left as it was."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)
