"""The recipe of a joint training: everything that decides what is trained, on what, and for how long.

Where a default comes from stands beside it: *paper* is arXiv 2502.07555, *reference* the code and the
checkpoint released with it, *ours* this project."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from o1_retriever.engine.checkpoint import is_adapter
from o1_retriever.errors import SettingsError
from o1_retriever_training.recipe import Section, changed, read_yaml
from o1_retriever_training.rows import HINT, HUB

TAIL = 3  # a thought of one token, its eos and the last <emb>
TrainedLayout = Literal["paper", "released", "chat"]


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _sources(value: Any) -> Any:
    """One or several sources, of which a text is the path, as a list of their fields."""
    values = value if isinstance(value, list | tuple) else [value]
    return [{"path": each} if isinstance(each, str) else each for each in values]


Number = Annotated[float, BeforeValidator(_no_bool)]
Count = Annotated[int, BeforeValidator(_no_bool)]
Share = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[Count, Field(ge=1)]
Tokens = Annotated[Count, Field(ge=8, le=1_000_000)]
Text = Annotated[str, Field(min_length=1)]


class LoraSettings(Section):
    """The low-rank matrices beside the frozen weights. All values are the reference's."""

    rank: Positive = 32
    alpha: Annotated[Number, Field(gt=0)] = 64
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    targets: tuple[Text, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )


class CorrectionSettings(Section):
    """A low-rank matrix from a thinker's state to the encoder's vectors, zero at the start. Ours."""

    rank: Positive = 32


class ModelSection(Section):
    """What is trained, and how. `dtype` auto is bfloat16 (reference) on CUDA and float32 on a CPU (ours).

    `layout` paper and released make a model that thinks and embeds; chat makes a thinker beside an encoder,
    which learns to write, and with `correction` to correct that encoder's vectors of queries. `dtype`
    fastest is bfloat16 where the processor multiplies in it, else float32. `attention` plain is a causal
    attention without a mask whose backward is fast on a CPU. Without `head_trains_embeddings` a head that
    is tied to the word embeddings reads them and does not train them.
    """

    base: Text
    layout: TrainedLayout = "paper"  # paper
    tuning: Literal["lora", "qlora", "full"] = "lora"  # reference
    lora: LoraSettings = LoraSettings()
    correction: CorrectionSettings | None = None
    dtype: Literal["auto", "fastest", "float32", "bfloat16"] = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2", "plain"] = "sdpa"  # ours
    gradient_checkpointing: bool = True  # reference
    head_trains_embeddings: bool = True  # as transformers has it

    @model_validator(mode="after")
    def _fits(self) -> ModelSection:
        if not self.head_trains_embeddings and self.tuning != "full":
            raise ValueError(
                f"head_trains_embeddings is off and tuning is {self.tuning}; expected tuning full, or on"
            )
        if self.correction is not None and self.layout != "chat":
            raise ValueError(
                f"correction is for a thinker beside an encoder and layout is {self.layout}; expected layout "
                "chat"
            )
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise ValueError(
                "attention flash_attention_2 computes in bfloat16 and dtype is float32; expected dtype "
                "bfloat16, or attention sdpa"
            )
        return self


class Source(Section):
    """A file of rows, or `hub:owner/name`; a batch is of one source. `rows` takes at most so many.

    `thoughts` is what is trained on: the elected one of a row, the first usable candidate (no committee),
    any candidate, another one each time, or none. With `written` off thoughts are embedded and not learned
    token by token. Of `kind` documents every row is a plain text (`text`, perhaps with a `title`), whose
    words are learned; in a source of pairs a row with `"kind": "document"` is one.
    """

    path: Text
    name: str | None = None
    rows: Positive | None = None
    thoughts: Literal["elected", "first", "any", "none"] = "elected"  # paper
    written: bool = True
    kind: Literal["pairs", "documents"] = "pairs"

    @property
    def title(self) -> str:
        """The name that logs show: its own, else that of the file."""
        return self.name or PurePath(self.path).name.partition(".")[0]


class TeacherSection(Section):
    """An encoder whose vectors are learned: its name as for a committee, such as minilm. Ours.

    A document's vector learns the encoder's of that document, a fast one its vector of the query and, with
    `thinking`, a thinking one its vector of the query followed by the thought.
    """

    encoder: Text
    thinking: bool = True


class IndexSection(Section):
    """Documents whose vectors stay, which every query is compared with in the place of its batch. Ours.

    `corpus` has a document a line (`text`, perhaps with a `title`, as in a BEIR folder). A row's positives
    are looked for among them by their text. `encoder` embeds them (None: the teacher). With `vectors`
    thinking the thinking vectors are compared alone.
    """

    corpus: Text
    encoder: Text | None = None
    vectors: Literal["all", "thinking"] = "all"


class DataSection(Section):
    """Rows to train on, and how long they may get, in tokens, markers included (all the reference's).

    `group` is how many passages a query has: one positive and up to `group` - 1 of its row's negatives.
    """

    train: Annotated[tuple[Source, ...], BeforeValidator(_sources), Field(min_length=1)]
    instruction: str = ""
    max_query_tokens: Tokens = 32
    max_document_tokens: Tokens = 192
    max_length: Tokens = 256
    group: Positive = 16
    teacher: TeacherSection | None = None
    index: IndexSection | None = None

    @model_validator(mode="after")
    def _fits(self) -> DataSection:
        if self.index is not None and self.index.encoder is None and self.teacher is None:
            raise ValueError(
                "index has no encoder and there is no teacher; expected index.encoder, such as minilm"
            )
        if self.max_query_tokens + TAIL > self.max_length:
            raise ValueError(
                f"max_query_tokens is {self.max_query_tokens} and max_length, of the query with its thought, "
                f"{self.max_length}; expected at least {TAIL} more"
            )
        titles = [source.title for source in self.train]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(
                f"two sources are called {twice[0]!r}; expected a name for each, such as name: a"
            )
        return self


class LossSection(Section):
    """The joint objective: `contrastive_weight` (λ) times the contrastive part, the rest for the thoughts.

    `vectors` sampled draws for each query which vector is trained (z, thinking with `thinking_probability`);
    both trains the fast and the thinking one. Where `data` has a teacher, `teacher_weight` times 1 - cosine
    and `relation_weight` times the divergence of the similarities within a batch come to the contrastive
    part, and where it has an index, `index_weight` times the comparison with all of it. The fast vector of a
    corrected query learns the one with the thought with `fast_weight` times 1 - cosine. A token of a plain
    document counts `document_token_weight` of a thought's, and of a batch at most `document_tokens` are
    learned, evenly spread.
    """

    contrastive_weight: Share = 0.8  # paper
    temperature: Annotated[Number, Field(gt=0, le=100)] = 0.02  # paper
    vectors: Literal["sampled", "both"] = "sampled"  # paper
    thinking_probability: Share = 0.5  # ours: the paper does not say
    thought_dropout: Share = 0.1  # reference
    in_batch_negatives: bool = True  # paper
    across_processes: bool = True  # paper
    distillation_weight: Annotated[Number, Field(ge=0)] = 1.0  # reference
    contrastive_part_weight: Annotated[Number, Field(ge=0)] = 1.0  # reference
    teacher_temperature: Annotated[Number, Field(gt=0)] = 1.0  # reference: raw scores
    teacher_weight: Annotated[Number, Field(ge=0)] = 1.0  # ours, as are those below
    relation_weight: Annotated[Number, Field(ge=0)] = 0.0
    relation_temperature: Annotated[Number, Field(gt=0)] = 0.05
    index_weight: Annotated[Number, Field(ge=0)] = 1.0
    fast_weight: Annotated[Number, Field(ge=0)] = 1.0
    document_token_weight: Annotated[Number, Field(ge=0)] = 0.4
    document_tokens: Positive | None = 384

    @model_validator(mode="after")
    def _teaches(self) -> LossSection:
        if self.contrastive_weight and not self.distillation_weight + self.contrastive_part_weight:
            raise ValueError(
                "distillation_weight and contrastive_part_weight are both 0; expected one of them above 0, "
                "or contrastive_weight 0"
            )
        return self


class OptimisationSection(Section):
    """How long and how fast; `steps` stands in the place of `epochs`.

    `queries` is the contrastive batch of a process, `chunk` how many sequences of the greatest length one
    forward takes (gradient caching; None: the graph of the whole batch is kept). With `tokens` a batch has
    rows of like length, at most so many tokens of them with padding, and at most `queries` rows. The
    schedule plateau falls to zero over the last `decay` of the steps. The head learns `head_rate` times as
    fast as the rest.
    """

    epochs: Annotated[Number, Field(gt=0)] | None = 1.0  # reference
    steps: Positive | None = None
    queries: Positive = 64  # reference: 8 on each of 8 GPUs
    tokens: Positive | None = None  # ours
    chunk: Positive | None = 16  # ours
    learning_rate: Annotated[Number, Field(gt=0)] = 1e-4  # reference
    head_rate: Annotated[Number, Field(gt=0)] = 1.0
    beta2: Annotated[Number, Field(gt=0, lt=1)] = 0.999  # AdamW's usual one
    schedule: Literal["linear", "cosine", "constant", "plateau"] = "linear"  # reference
    decay: Annotated[Number, Field(gt=0, le=1)] = 0.5  # ours
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.1  # reference; a share of the steps
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0  # reference
    max_grad_norm: Annotated[Number, Field(gt=0)] = 1.0  # reference
    seed: Annotated[Count, Field(ge=0, lt=2**32)] = 42  # reference

    @model_validator(mode="before")
    @classmethod
    def _steps_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("steps") is not None and "epochs" not in value:
            return value | {"epochs": None}
        return value

    @model_validator(mode="after")
    def _one_length(self) -> OptimisationSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps is {self.steps} and epochs {self.epochs}; expected one of them")
        return self


class EvaluationSection(Section):
    """A dev collection (BEIR folder) that is searched every so many steps; the best checkpoint is kept.

    `thoughts` is k, 0 judges the fast path; with `temperature` 0 the likeliest thought is written. A thinker
    is judged beside `encoder`, which embeds queries and documents. All ours.
    """

    collection: Text
    split: Text = "dev"
    encoder: Text | None = None
    every: Positive = 500
    queries: Positive | None = 200
    metric: str = "nDCG@10"
    thoughts: Annotated[Count, Field(ge=0, le=1024)] = 1
    max_new_tokens: Positive = 128
    temperature: Annotated[Number, Field(ge=0, le=100)] = 0.0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 0.9

    @property
    def figure(self) -> str:
        """The name of the figure that decides which checkpoint is best."""
        return f"{self.metric} {'thinking' if self.thoughts else 'fast'}"

    @field_validator("split")
    @classmethod
    def _not_the_test(cls, value: str) -> str:
        if value.strip().lower() == "test":
            raise ValueError(
                "the checkpoint is chosen by this split, and what was chosen on the test split cannot be "
                "measured on it any more; expected dev or another one"
            )
        return value

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        from o1_retriever.evaluation.metrics import MEASURES

        if value not in MEASURES:
            raise ValueError(f"expected one of {', '.join(MEASURES)}")
        return value


class CheckpointSection(Section):
    """How often everything that a run needs to go on is written, and how many of those are kept. Ours."""

    every: Positive = 500
    keep: Positive = 2


class StopSection(Section):
    """When to give up: the loss's running mean is so many times its lowest. None: never. Ours."""

    divergence: Annotated[Number, Field(gt=1)] | None = 3.0


class HardwareSection(Section):
    """What the recipe is written for: `device` by a name that the dry run knows, and how many of them. Ours.

    With `sharded` the dry run splits weights, gradients and optimizer states over the devices (FSDP). With
    `sparing` a run on a CPU computes with fewer threads while other processes want the cores, which is
    several times faster then; sums in another order may change last bits of the weights. A contrastive
    batch has `optimisation.queries` of every process, so that another number of processes trains on another
    batch.
    """

    device: str | None = None
    processes: Positive | None = None
    sharded: bool = False
    sparing: bool = False


class TrainRecipe(Section):
    """Everything about a joint training. Whether its files exist is checked by `read_train_recipe`."""

    model: ModelSection
    data: DataSection
    losses: LossSection = LossSection()
    optimisation: OptimisationSection = OptimisationSection()
    evaluation: EvaluationSection | None = None
    checkpoints: CheckpointSection = CheckpointSection()
    stop: StopSection = StopSection()
    hardware: HardwareSection = HardwareSection()
    output: Text

    @model_validator(mode="after")
    def _agrees(self) -> TrainRecipe:
        if self.losses.vectors == "both" and self.model.layout == "released":
            raise ValueError(
                "losses.vectors is both, and in model.layout released a query with a thought has no fast "
                "vector; expected losses.vectors sampled or model.layout paper"
            )
        compares = bool(self.losses.contrastive_weight or self.data.teacher or self.data.index)
        if self.model.layout == "chat" and compares and self.model.correction is None:
            raise ValueError(
                "model.layout is chat, which makes no vectors, and the losses or the data compare some; "
                "expected model.correction, or losses.contrastive_weight 0 and neither data.teacher nor "
                "data.index"
            )
        if self.model.correction is not None and not self._corrects:
            raise ValueError(
                "model.correction learns to correct the encoder's vectors of a query and of the query with "
                "its thought; expected data.teacher with thinking, data.index of the same encoder, "
                "losses.vectors both and losses.contrastive_weight above 0"
            )
        if self.evaluation is not None and (self.evaluation.encoder is None) == (self.model.layout == "chat"):
            raise ValueError(
                f"model.layout is {self.model.layout} and evaluation.encoder {self.evaluation.encoder}; "
                "expected an encoder for layout chat, such as all-MiniLM-L6-v2, and none for the others"
            )
        alone = self.data.group == 1 and not self.losses.in_batch_negatives
        if alone and self.losses.contrastive_weight:
            raise ValueError(
                "data.group is 1 and losses.in_batch_negatives is off, so that no query has a negative; "
                "expected data.group 2 or more, or losses.in_batch_negatives on"
            )
        return self

    @property
    def _corrects(self) -> bool:
        """Whether there is all that a correction learns from."""
        teacher, index, losses = self.data.teacher, self.data.index, self.losses
        if teacher is None or index is None or not teacher.thinking:
            return False
        same = index.encoder in (None, teacher.encoder)
        return same and losses.vectors == "both" and losses.contrastive_weight > 0

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values, defaults included; `TrainRecipe.of` reads them again."""
        return self.model_dump(mode="json")

    @property
    def chunk_tokens(self) -> int | None:
        """How many tokens, padding included, a forward has at most under gradient caching; None without."""
        chunk = self.optimisation.chunk
        longest = max(self.data.max_length, self.data.max_document_tokens)
        return None if chunk is None else chunk * longest

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for all that decides the weights.

        A project can be moved: files count by their names, the base model's folder by its last two. What
        files contain, where the output goes, when it is evaluated or kept and what it runs on do not count.
        """
        content = self.model_dump(
            mode="json", exclude={"output", "checkpoints", "evaluation", "stop", "hardware"}
        )
        del content["model"]["gradient_checkpointing"]
        content["model"]["base"] = "/".join(PurePath(self.model.base).parts[-2:])
        for source in content["data"]["train"]:
            if not source["path"].startswith(HUB):
                source["path"] = PurePath(source["path"]).name
        if content["data"]["index"] is not None:
            content["data"]["index"]["corpus"] = PurePath(content["data"]["index"]["corpus"]).name
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def other_targets(linear: Iterable[str]) -> str:
    """What to type where the layers of `model.lora.targets` are not those of a base: it has `linear` ones."""
    names = ", ".join(sorted(linear))
    return (
        f"Its linear layers are {names}. Type: --set model.tuning=full, which moves every weight, or "
        f"--set 'model.lora.targets=[{names}]'"
    )


def read_train_recipe(
    path: str | Path, changes: Sequence[str] = (), *, check_files: bool = True
) -> TrainRecipe:
    """The recipe of a YAML file with some `section.field=value` changed.

    Paths that begin with ./ or ../ are taken from the file's folder. Raises `SettingsError` naming the first
    field that is wrong and, with `check_files`, the first file of the user's that is not there.
    """
    value = read_yaml(path)
    if not isinstance(value, dict):
        raise SettingsError(
            f"The recipe {path} is a {type(value).__name__}; expected sections such as model: and data:."
        )
    value = changed(placed(value, Path(path).parent), changes)
    recipe = TrainRecipe.of(value, where=str(path))
    if check_files:
        check_paths(recipe, where=str(path))
    return recipe


def placed(value: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same fields with ./ and ../ of the paths taken from `folder`, and `data.train` as a list."""
    value = copy.deepcopy(value)
    holders: list[tuple[Any, str]] = [
        (value, "output"),
        (value.get("model"), "base"),
        (value.get("evaluation"), "collection"),
    ]
    data = value.get("data")
    if isinstance(data, dict) and "train" in data:
        data["train"] = _sources(data["train"])
        holders += [(source, "path") for source in data["train"]]
        holders.append((data.get("index"), "corpus"))
    for holder, name in holders:
        path = holder.get(name) if isinstance(holder, dict) else None
        if isinstance(path, str) and path.startswith(("./", "../")):
            holder[name] = os.path.normpath(folder.resolve() / path)
    return value


def check_paths(recipe: TrainRecipe, *, where: str) -> None:
    """Raise `SettingsError` naming the first file or folder of the recipe that is not there."""
    for number, source in enumerate(recipe.data.train):
        if not source.path.startswith(HUB) and not Path(source.path).is_file():
            raise SettingsError(
                f"{where}: data.train.{number}.path is {source.path!r}; there is no such file.",
                hint=f"{HINT} Rows of a folder of documents are made by: o1-retriever make-data FOLDER",
            )
    index = recipe.data.index
    if index is not None and not Path(index.corpus).is_file():
        raise SettingsError(
            f"{where}: data.index.corpus is {index.corpus!r}; there is no such file.",
            hint="Expected a document a line, such as the corpus.jsonl of a BEIR folder.",
        )
    base = Path(recipe.model.base)
    if looks_local(recipe.model.base) and not (is_adapter(base) or (base / "config.json").is_file()):
        raise SettingsError(
            f"{where}: model.base is {recipe.model.base!r}; there is no folder with a config.json.",
            hint="Expected the folder of a causal language model, or a Hub id such as Qwen/Qwen2.5-0.5B.",
        )
    if recipe.evaluation is not None:
        _check_collection(recipe.evaluation, where)
    if Path(recipe.output).is_file():
        raise SettingsError(f"{where}: output is {recipe.output!r}, a file; expected a folder.")


def looks_local(base: str) -> bool:
    """Whether a model's name can only be a folder: it exists, or no Hub id is written like that."""
    return Path(base).exists() or base.startswith((".", "/", "~")) or base.count("/") > 1


def _check_collection(section: EvaluationSection, where: str) -> None:
    from o1_retriever.evaluation.collection import splits_of

    root = Path(section.collection)
    if not (root / "corpus.jsonl").is_file():
        raise SettingsError(
            f"{where}: evaluation.collection is {section.collection!r}; there is no folder with a "
            "corpus.jsonl.",
            hint="Expected a BEIR folder: corpus.jsonl, queries.jsonl and qrels/<split>.tsv. "
            "Without one, leave the section out.",
        )
    known = splits_of(root)
    if section.split not in known:
        raise SettingsError(
            f"{where}: evaluation.split is {section.split!r}; {section.collection} has "
            f"{', '.join(known) or 'none'}."
        )
