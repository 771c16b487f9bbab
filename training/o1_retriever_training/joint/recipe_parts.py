"""The sections of a recipe. Where a default comes from stands beside it.

*paper* is arXiv 2502.07555, *reference* the code and the checkpoint released with it, *ours* this project.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from o1_retriever.engine.template import Layout

TAIL = 3  # a thought of one token, its eos and the last <emb>


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _one_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _several_sources(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


Number = Annotated[float, BeforeValidator(_no_bool)]
Count = Annotated[int, BeforeValidator(_no_bool)]
Share = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[Count, Field(ge=1)]
Tokens = Annotated[Count, Field(ge=8, le=1_000_000)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """What every section is: frozen, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSettings(Section):
    """The low-rank matrices beside the frozen weights. All values are the reference's."""

    rank: Positive = 32
    alpha: Annotated[Number, Field(gt=0)] = 64
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    targets: tuple[Text, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )


class ModelSection(Section):
    """What is trained, and how. `dtype` auto is bfloat16 (reference) on CUDA and float32 on a CPU (ours)."""

    base: Text
    layout: Layout = "paper"  # paper
    tuning: Literal["lora", "qlora", "full"] = "lora"  # reference
    lora: LoraSettings = LoraSettings()
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"  # ours
    gradient_checkpointing: bool = True  # reference

    @model_validator(mode="after")
    def _fits(self) -> ModelSection:
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise ValueError(
                "attention flash_attention_2 computes in bfloat16 and dtype is float32; expected dtype "
                "bfloat16, or attention sdpa"
            )
        return self


class Source(Section):
    """A file of rows, or `hub:owner/name`; a batch is of one source. `rows` takes at most so many.

    `thoughts` is what is trained on: the elected one of a row, the first usable candidate (no committee),
    any candidate, another one each time, or none.
    """

    path: Text
    name: str | None = None
    rows: Positive | None = None
    thoughts: Literal["elected", "first", "any", "none"] = "elected"  # paper

    @property
    def title(self) -> str:
        """The name that logs show: its own, else that of the file."""
        return self.name or PurePath(self.path).name.partition(".")[0]


class DataSection(Section):
    """Rows to train on, and how long they may get, in tokens, markers included (all the reference's).

    `group` is how many passages a query has: one positive and up to `group` - 1 of its row's negatives.
    """

    train: Annotated[
        tuple[Annotated[Source, BeforeValidator(_one_source)], ...],
        BeforeValidator(_several_sources),
        Field(min_length=1),
    ]
    instruction: str = ""
    max_query_tokens: Tokens = 32
    max_document_tokens: Tokens = 192
    max_length: Tokens = 256
    group: Positive = 16

    @model_validator(mode="after")
    def _fits(self) -> DataSection:
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
    both trains the fast and the thinking one.
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
    forward takes (gradient caching; None: the graph of the whole batch is kept).
    """

    epochs: Annotated[Number, Field(gt=0)] | None = 1.0  # reference
    steps: Positive | None = None
    queries: Positive = 64  # reference: 8 on each of 8 GPUs
    chunk: Positive | None = 16  # ours
    learning_rate: Annotated[Number, Field(gt=0)] = 1e-4  # reference
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # reference
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

    `thoughts` is k, 0 judges the fast path; with `temperature` 0 the likeliest thought is written. All ours.
    """

    collection: Text
    split: Text = "dev"
    every: Positive = 500
    queries: Positive | None = 200
    metric: str = "nDCG@10"
    thoughts: Annotated[Count, Field(ge=0, le=1024)] = 1
    max_new_tokens: Positive = 128
    temperature: Annotated[Number, Field(ge=0, le=100)] = 0.0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 0.9

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

    With `sharded` the dry run splits weights, gradients and optimizer states over the devices (FSDP).
    A contrastive batch has `optimisation.queries` of every process, so that another number of processes
    trains on another batch.
    """

    device: str | None = None
    processes: Positive | None = None
    sharded: bool = False
