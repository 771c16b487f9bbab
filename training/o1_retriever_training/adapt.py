"""From an index to a thinker for it: questions, rows, training, and a judgment on questions kept apart.

The index's vectors stay as they are, and it is judged by them; rounds and a correction embed the texts for
their training as well. Every stage writes a file into one folder and is not repeated when it is there, so
that the same call goes on after an end of any kind.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import yaml

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.endpoint.chat import ChatPrompt
from o1_retriever.errors import SettingsError
from o1_retriever.evaluation.collection import EncodedCorpus, load_collection
from o1_retriever.evaluation.controls import Verdict, judge
from o1_retriever.evaluation.sources import write_collection
from o1_retriever.index.index import Index
from o1_retriever.reporting import counted
from o1_retriever.thinkers import LocalThinker
from o1_retriever.thinkers.config import Correction
from o1_retriever.vectors import unit
from o1_retriever_training.joint.recipe import TrainRecipe, read_train_recipe
from o1_retriever_training.ledger import OtherRecipeError, write_whole
from o1_retriever_training.make_data import DataPlan, RowPlan, question_pairs, write_rows
from o1_retriever_training.pages import ProgressPage
from o1_retriever_training.recipe import Recipe
from o1_retriever_training.rows import DataError, TrainingRow, plain_text, read_corpus, read_rows
from o1_retriever_training.synthesize import Options

if TYPE_CHECKING:
    from o1_retriever.encoders import Encoder
    from o1_retriever_training.joint.trainer import Told

Say = Callable[[str], None]

SPLIT = "dev"
THINKER = "thinker"  # the folder with what is installed
_LEAST_QUESTIONS = 20
_LEAST_STEPS = 40
_MOST_CHOOSING = 100  # questions by which a round is kept or not
_REPLAYED = 2000  # rows of the index's words that are learned again beside what is new
# A small model writes questions when it is shown some, and does not when it is told to.
_ASKING = ChatPrompt(
    user="Passage: {query}\nQuestion:",
    system="You write questions. Write one short question that the passage answers.",
    examples=(
        (
            "Yeast is a living fungus that feeds on the sugar in dough and gives off carbon dioxide gas.",
            "Why does bread dough rise before it is baked?",
        ),
        (
            "Alexander Fleming was a Scottish physician who discovered penicillin in 1928.",
            "Who discovered penicillin?",
        ),
        ("A balance is a kind of tool for measuring mass.", "Which tool tells how heavy a stone is?"),
        (
            "Madrid is the capital of Spain and lies in the northern hemisphere.",
            "In which hemisphere is the capital of Spain?",
        ),
        (
            "Frost is formed when water vapour freezes on cold surfaces.",
            "What happens to water vapour on a cold window at night?",
        ),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptPlan:
    """How a thinker is adapted.

    `base` is the language model that becomes the thinker. Training takes about `hours`, and no longer than
    `passes` passes over the passages. Without questions of the caller's, `base` writes some about at most
    `asked` passages. At most `held_out` of the questions, and a third of them, are kept apart to judge it by.

    In each of at most `rounds` its thoughts about questions that it has not seen are rewarded by what they do
    for retrieval, and it learns the best. With `correct` it learns to correct the encoder's vectors of
    queries.
    """

    base: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    hours: float = 1.0
    passes: int = 4
    asked: int = 600
    held_out: int = 200
    rounds: int = 0
    correct: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.hours > 0:
            raise SettingsError(f"hours is {self.hours}; expected a number above 0.")
        for name in ("passes", "asked", "held_out"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.rounds < 0:
            raise SettingsError(f"rounds is {self.rounds}; expected 0 or more.")


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """The folder of one adaptation, and what is where in it. `encoder` is what embedded the documents.

    `writer` writes the questions where none are given, as `as_expert` takes it (None: the base). `say` is
    given a line of each stage, and `told` what a training logs.
    """

    folder: Path
    index: Index
    encoder: Encoder
    plan: AdaptPlan
    say: Say
    writer: Any = None
    options: Options = field(default_factory=Options)
    told: Told | None = None

    @property
    def held_out(self) -> Path:
        """The index as a collection in BEIR layout, with the questions that were kept apart."""
        return self.folder / "held-out"

    @property
    def corpus(self) -> Path:
        """The index's passages, one a line."""
        return self.held_out / "corpus.jsonl"

    @property
    def questions(self) -> Path:
        """The questions that are trained on."""
        return self.folder / "questions.jsonl"

    @property
    def rewarded(self) -> Path:
        """The questions that are not trained on as they are: thoughts about them are rewarded."""
        return self.folder / "rewarded.jsonl"

    @property
    def choosing(self) -> Path:
        """The index as a collection with the questions by which a round is kept or not."""
        return self.folder / "choosing"

    @property
    def rows(self) -> Path:
        """What is trained on."""
        return self.folder / "rows.jsonl"

    @cached_property
    def passages(self) -> list[str]:
        """The texts of the index."""
        return read_corpus(self.corpus).texts


def adapt(work: Workplace, *, questions: str | Path | None = None) -> Verdict:
    """Train a thinker for an index, judge it, and put it into the folder `thinker` if it helps.

    `questions` are rows (`query`, `pos`: texts of passages, or `pos_ids`: their ids; perhaps `thought`) that
    people asked; without them the base model writes some. The same call goes on where it was stopped. Raises
    `OtherRecipeError` for a folder in which something else was begun, `DataError` where there is too little
    to learn from or to judge by, `SettingsError` for a correction without such questions, and what the stages
    raise.
    """
    if work.plan.correct and questions is None:
        # Measured: learned from questions that a model made it loses on those that people ask.
        raise SettingsError(
            "To correct vectors is learned from questions that people asked, and none are given. Expected "
            "--questions FILE beside --correct, or no --correct."
        )
    with ProgressPage(work.folder / "progress.html", f"A thinker for {work.index.path}", work.say) as page:
        say, work = work.say, replace(work, say=page.say, told=page.trained)
        prepare(work, questions)
        say(f"To follow it, open {page.page} in a browser")
        recipe = schedule(work)
        model = _train(work, recipe)
        if work.plan.rounds:
            model = _rewarded(work, recipe, model)
        if work.plan.correct:
            model = _corrected(work, recipe, model)
        verdict = _judge(work, model)
        _install(work, model, verdict)
        page.end(verdict.sentence(), *verdict.rows())
    return verdict


def only_embeds(encoder: Encoder) -> ThinkingEmbedder:
    """An embedder for documents and fast queries, whose thinker is never asked."""
    return ThinkingEmbedder.from_parts(_no_thoughts, encoder, cache=False)


def _no_thoughts(queries: list[str], k: int) -> list[list[str]]:
    raise RuntimeError(f"{k} thoughts about {counted(len(queries), 'query', 'queries')} were asked for.")


def prepare(work: Workplace, questions: str | Path | None) -> None:
    """Write the passages, the questions and those that are kept apart. Raises as `adapt` does."""
    _claim(work, questions)
    if not work.questions.is_file():
        _write_passages(work)
        asked = list(_asked_by_people(work, questions) if questions else _asked_by_the_base(work))
        _split(work, asked)


def _claim(work: Workplace, questions: str | Path | None) -> None:
    """Note what this folder is for; refuse one that is for something else."""
    settings = {name: value for name, value in asdict(work.plan).items() if name != "hours"}
    mine = {
        "index": str(work.index.path),
        "documents": work.index.count(),
        "generation": work.index.generation,
        "questions": None if questions is None else str(Path(questions).resolve()),
        "plan": settings,
    }
    work.folder.mkdir(parents=True, exist_ok=True)
    path = work.folder / "adapt.json"
    if not path.is_file():
        write_whole(path, json.dumps(mine, indent=1) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    differing = [name for name in mine if before.get(name) != mine[name]]
    if differing:
        was, now = before.get(differing[0]), mine[differing[0]]
        raise OtherRecipeError(
            f"{work.folder} was begun with {differing[0]} {was!r}, and this is {now!r}.",
            hint="Give another folder with --out, or remove this one.",
        )


def _write_passages(work: Workplace) -> None:
    work.held_out.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps({"_id": document.id, "title": "", "text": document.text}, ensure_ascii=False)
        for document in work.index.documents()
    )
    write_whole(work.corpus, "".join(f"{line}\n" for line in lines))
    work.say(counted(len(work.passages), "passage"))


def _asked_by_people(work: Workplace, questions: str | Path) -> Iterator[TrainingRow]:
    """The questions with their passages as texts of the index, as far as they are there."""
    corpus = read_corpus(work.corpus)
    texts = {plain_text(text): text for text in corpus.texts}
    for row in read_rows(questions):
        ids = getattr(row, "pos_ids", None) or ()
        found = [corpus.texts[corpus.places[str(one)]] for one in ids if str(one) in corpus.places]
        found += [texts[key] for key in map(plain_text, row.pos) if key in texts]
        yield row.model_copy(update={"pos": list(dict.fromkeys(found))})


def _asked_by_the_base(work: Workplace) -> Iterator[TrainingRow]:
    """Questions that the base model writes about some passages, and that find them again."""
    from o1_retriever_training.experts import as_expert

    draw, texts = Random(work.plan.seed), work.passages
    chosen = draw.sample(texts, min(work.plan.asked, len(texts)))
    passages = work.folder / "asked-about.jsonl"
    write_whole(passages, "".join(json.dumps({"query": text}, ensure_ascii=False) + "\n" for text in chosen))
    question_pairs(
        work.folder,
        as_expert(work.writer or LocalThinker(work.plan.base, prompt=_ASKING)),
        Recipe(seed=work.plan.seed),
        DataPlan(queries_per_passage=1, within=3, temperature=0.7),
        work.options,
        work.say,
        passages=passages,
        corpus=work.corpus,
    )
    written = read_rows(work.folder / "pairs.jsonl")
    # A small model's statements would find their passage by its own words.
    yield from (row for row in written if work.writer is not None or row.query.endswith("?"))


def _split(work: Workplace, rows: Sequence[TrainingRow]) -> None:
    """Keep some questions apart, and write the others; a question that is asked twice stays together."""
    ids: dict[str, list[str]] = {}  # copies of a passage answer as well as it does
    for name, text in _named(work):
        ids.setdefault(text, []).append(name)
    by_text: dict[str, list[TrainingRow]] = {}
    for row in rows:
        by_text.setdefault(plain_text(row.query), []).append(row)
    judged = [key for key, own in by_text.items() if any(row.pos for row in own)]
    if len(judged) < _LEAST_QUESTIONS:
        raise DataError(
            f"Found {counted(len(judged), 'question')} with a passage of the index; expected at least "
            f"{_LEAST_QUESTIONS}, of which a third is kept apart to judge the thinker by.",
            hint="Raise --ask-about, or add to --questions, whose passages are texts of the index (pos) or "
            "their ids (pos_ids).",
        )
    count = min(work.plan.held_out, len(judged) // 3)
    documents = [{"_id": name, "title": "", "text": text} for name, text in _named(work)]

    def write_judged(folder: Path, keys: Sequence[str]) -> None:
        queries = [{"_id": f"q{place}", "text": by_text[key][0].query} for place, key in enumerate(keys)]
        judgments = [
            (f"q{place}", name, 1)
            for place, key in enumerate(keys)
            for text in dict.fromkeys(text for row in by_text[key] for text in row.pos)
            for name in ids[text]
        ]
        write_collection(folder, documents=documents, queries=queries, judgments=judgments, split=SPLIT)

    def write_kept(path: Path, keys: Iterable[str]) -> int:
        kept = [row for key in keys for row in by_text[key]]
        write_whole(path, "".join(row.line() for row in kept))
        return len(kept)

    apart = Random(f"{work.plan.seed} apart").sample(judged, count)
    write_judged(work.held_out, apart)
    left = [key for key in by_text if key not in {*apart}]
    if work.plan.rounds:
        asked = [key for key in judged if key in {*left}]
        drawn = Random(f"{work.plan.seed} rewarded").sample(asked, len(asked))
        chooses = min(_MOST_CHOOSING, len(drawn) // 5)
        rewarded = drawn[chooses : (chooses + len(drawn)) // 2]
        write_judged(work.choosing, drawn[:chooses])
        write_kept(work.rewarded, rewarded)
        left = [key for key in left if key not in {*drawn[:chooses], *rewarded}]
        work.say(f"{counted(len(rewarded), 'question')} to be rewarded for, {chooses} to choose a round by")
    kept = write_kept(work.questions, left)
    work.say(f"{counted(kept, 'question')} to learn from, {count} kept apart")


def _named(work: Workplace) -> Iterable[tuple[str, str]]:
    corpus = read_corpus(work.corpus)
    return ((name, corpus.texts[place]) for name, place in corpus.places.items())


def schedule(work: Workplace) -> TrainRecipe:
    """Write the rows and the recipe of a training as long as the time allows; the first call's are kept."""
    from o1_retriever_training.joint.run import pace

    path = work.folder / "recipe.yaml"
    if path.is_file():
        return read_train_recipe(path)
    _write_rows(work, 1)
    steps, seconds = pace(TrainRecipe.of(_fields(work)))
    most = max(_LEAST_STEPS, int(work.plan.hours * 3600 / seconds))
    passes = min(work.plan.passes, most // steps)
    if passes:
        _write_rows(work, passes)
    recipe = TrainRecipe.of(_fields(work, **({} if passes else {"steps": most, "epochs": None})))
    write_whole(path, yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    read = counted(passes, "pass", "passes") if passes else f"{most / steps:.0%} of a pass"
    hours = (passes * steps or most) * seconds / 3600
    work.say(f"{read} over the passages in steps of {seconds:.1f} s, about {hours:.1f} h")
    return recipe


def _write_rows(work: Workplace, passes: int) -> None:
    plan = RowPlan(draws=passes, answers=2 * passes, seed=work.plan.seed)
    write_rows(work.passages, read_rows(work.questions), work.rows, plan=plan)


_INNER = ["gate_proj", "up_proj", "down_proj"]  # where a model keeps what it knows


def _fields(work: Workplace, **optimisation: Any) -> dict[str, Any]:
    """The fields of `training/recipes/index-thinker/words.yaml`, for this index."""
    return {
        "model": {
            "base": work.plan.base,
            "layout": "chat",
            "tuning": "lora",
            "lora": {"rank": 48, "alpha": 96, "dropout": 0.0, "targets": _INNER},
            "dtype": "fastest",
            "attention": "plain",
            "gradient_checkpointing": False,
        },
        "data": {"train": str(work.rows), "max_query_tokens": 96, "max_length": 192},
        "losses": {"contrastive_weight": 0.0},
        "optimisation": {
            "tokens": 1536,
            "queries": 64,
            "chunk": None,
            "learning_rate": 1e-3,
            "warmup": 0.03,
            "seed": work.plan.seed,
            **optimisation,
        },
        "checkpoints": {"every": 40, "keep": 1},
        "stop": {"divergence": None},
        "hardware": {"device": "cpu", "processes": 1, "sparing": True},
        "output": str(work.folder / "training"),
    }


def _train(work: Workplace, recipe: TrainRecipe) -> Path:
    from o1_retriever_training.joint.run import train

    return train(recipe, show_progress_bar=work.options.show, told=work.told).output


def _rewarded(work: Workplace, recipe: TrainRecipe, model: Path) -> Path:
    """The best of some rounds in which the thinker learns from its own thoughts; it may be the first."""
    from o1_retriever_training.improve import Improvement, improve

    plan = work.plan
    rounds = improve(
        reward_recipe(work, recipe, model),
        work.rewarded,
        work.folder / "rounds",
        plan=Improvement(rounds=plan.rounds, temperature=0.7, top_p=0.9, max_tokens=48, seed=plan.seed),
        options=work.options,
        say=work.say,
        encoder=work.encoder,
    )
    return Path([each for each in rounds if each.improved][-1].model)


def _corrected(work: Workplace, recipe: TrainRecipe, model: Path) -> Path:
    """The thinker with a small matrix that it learns beside its own thoughts about the questions."""
    from o1_retriever_training.joint.run import train

    own = work.folder / "own-thoughts.jsonl"
    if not own.is_file():
        _write_own_thoughts(work, model, own)
    work.say("Learning to correct the vectors of queries")
    made = correction_recipe(work, recipe, model, own)
    output = train(made, show_progress_bar=work.options.show, teacher=work.encoder, told=work.told).output
    matrix = Correction.beside(output)
    if matrix is not None and matrix.encoder is None:
        replace(matrix, encoder=work.encoder.space.weights).save(output)
    return output


def reward_recipe(work: Workplace, recipe: TrainRecipe, model: Path) -> TrainRecipe:
    """`training/recipes/index-thinker/reward.yaml` for this index, from a thinker that knows its words."""
    section = {
        "collection": str(work.choosing), "split": SPLIT, "encoder": work.encoder.space.weights,
        "thoughts": 3, "temperature": 0.7, "max_new_tokens": 48, "every": 10_000,
    }  # fmt: skip
    return TrainRecipe.of(_further(work, recipe, model, "rounds") | {"evaluation": section})


def correction_recipe(work: Workplace, recipe: TrainRecipe, model: Path, own: Path) -> TrainRecipe:
    """`training/recipes/index-thinker/correction.yaml` for this index, with the thinker's `own` thoughts."""
    fields = _further(work, recipe, model, "correction")
    fields["model"]["correction"] = {"rank": 32}
    fields["data"]["train"].insert(0, {"path": str(own), "name": "own", "thoughts": "any", "written": False})
    fields["data"]["teacher"] = {"encoder": work.encoder.space.weights}
    fields["data"]["index"] = {"corpus": str(work.corpus)}
    fields["losses"] |= {"contrastive_weight": 0.5, "temperature": 0.05, "vectors": "both"}
    return TrainRecipe.of(fields)


def _write_own_thoughts(work: Workplace, model: Path, out: Path) -> None:
    """The questions with what the thinker itself thinks: expert thoughts and passages would teach copying."""
    files = [path for path in (work.questions, work.rewarded) if path.is_file()]
    rows = [row for path in files for row in read_rows(path) if row.pos]
    thinker = LocalThinker(str(model))
    embedder = ThinkingEmbedder.from_parts(thinker, work.encoder, cache=work.folder / "thoughts")
    written = embedder.think([row.query for row in rows])
    lines = (
        row.model_copy(update={"thought": None, "all_thought": [t.text for t in own if not t.failed]}).line()
        for row, own in zip(rows, written, strict=True)
    )
    write_whole(out, "".join(lines))


def _further(work: Workplace, recipe: TrainRecipe, model: Path, name: str) -> dict[str, Any]:
    """A pass of small steps from a model on, over what is new and some of the index's words."""
    fields = recipe.to_dict()
    fields["model"]["base"] = str(model)
    fields["data"]["train"][0] |= {"rows": _REPLAYED, "name": "words"}
    fields["optimisation"] |= {"epochs": 1.0, "steps": None, "learning_rate": 1e-4}
    return fields | {"output": str(work.folder / name)}


def _judge(work: Workplace, model: Path) -> Verdict:
    """The thinker on the questions that were kept apart, against the vectors of the index itself."""
    collection = load_collection(work.held_out, split=SPLIT)
    vectors = unit(work.index.vectors(collection.corpus.ids))
    thinker = LocalThinker(str(model))
    embedder = ThinkingEmbedder.from_parts(thinker, work.encoder, cache=work.folder / "thoughts")
    work.say(f"Thinking about {counted(len(collection.queries), 'question')}")
    verdict = judge(embedder, collection, EncodedCorpus(matrix=vectors, seconds=0.0))
    write_whole(work.folder / "verdict.json", json.dumps(asdict(verdict), indent=1) + "\n")
    return verdict


def _install(work: Workplace, model: Path, verdict: Verdict) -> None:
    """Copy what `LocalThinker` needs, whole or not at all; without a gain remove what was there."""
    target, fresh = work.folder / THINKER, work.folder / f"{THINKER}.new"
    for stale in (target, fresh):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(stale)
    report = f"{verdict.sentence()}\n\n{verdict.table()}\n"
    write_whole(work.folder / "verdict.md", report)
    if verdict.is_good:
        shutil.copytree(model, fresh, ignore=shutil.ignore_patterns("training", "training.json"))
        (fresh / "README.md").write_text(f"# A thinker for one index\n\n{report}", encoding="utf-8")
        fresh.rename(target)
