"""A whole run: from a recipe to the folder that `ThinkingEmbedder.from_pretrained` loads."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments, set_seed

from o1_retriever.embedder import ThinkingEmbedder
from o1_retriever.encoders import as_encoder
from o1_retriever.engine.template import TemplateConfig
from o1_retriever.engine.threads import SparingThreads
from o1_retriever.engine.weights import merged
from o1_retriever.errors import require
from o1_retriever.evaluation.collection import EncodedCorpus, load_collection
from o1_retriever.evaluation.comparison import evaluate
from o1_retriever.evaluation.systems import Dense
from o1_retriever.reporting import counted
from o1_retriever.storage import written_whole
from o1_retriever.thinkers import LocalThinker
from o1_retriever.thinkers.config import ThinkerConfig
from o1_retriever.thought import ThoughtSettings
from o1_retriever_training.joint.batches import (
    Collator,
    DrawnRows,
    SameSourceBatches,
    steps_per_epoch,
    unit_vectors,
)
from o1_retriever_training.joint.model import (
    Backbone,
    compute_dtype,
    open_backbone,
    uncast_inputs,
    whole_weights,
    without_shards,
)
from o1_retriever_training.joint.recipe import EvaluationSection, TrainRecipe
from o1_retriever_training.joint.rows import TrainingRows, open_rows
from o1_retriever_training.joint.steps import How, joint_step
from o1_retriever_training.joint.trainer import (
    JointTrainer,
    Told,
    TrainingError,
    budget_of,
    check_data,
    enough_space,
    joint_model,
    newest,
    step_of,
)
from o1_retriever_training.ledger import OtherRecipeError
from o1_retriever_training.saving import save_embedder, save_thinker

logger = logging.getLogger(__name__)

SUMMARY = "training.json"
_DEPTH = 100  # documents that the dev collection is searched for
_WORK = "training"  # checkpoints, tokenised rows and logs, inside the output
# As transformers calls them.
_SCHEDULES = {"constant": "constant_with_warmup", "plateau": "warmup_stable_decay"}
_LOST = ("connection closed", "connection reset", "broken pipe", "timed out", "timeout", "nccl", "peer")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How a run ended.

    `output` is the model's folder, `best` the dev figures of the weights in it (None without an evaluation),
    `resumed_from` the step that an earlier run had reached (None for a fresh start), `data` what it was
    trained on.
    """

    output: Path
    steps: int
    seconds: float
    best: dict[str, float] | None
    resumed_from: int | None
    data: str
    finished_before: bool = False

    def write(self, recipe: TrainRecipe, log: list[dict[str, Any]]) -> None:
        """Write the recipe, the dev figures and the log; only then a run is finished."""
        own = {"steps": self.steps, "best": self.best, "data": self.data, "log": log}
        with written_whole(self.output / SUMMARY) as text:
            json.dump({"recipe": recipe.to_dict(), "fingerprint": recipe.fingerprint, **own}, text, indent=1)


def finished(output: Path, recipe: TrainRecipe) -> TrainResult | None:
    """What an earlier run of this recipe came to; None where none was finished.

    Raises `OtherRecipeError` when the output is another recipe's.
    """
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((output / SUMMARY).read_text(encoding="utf-8"))
        if summary["fingerprint"] != recipe.fingerprint:
            raise OtherRecipeError(
                f"{output} was trained with the recipe {summary['fingerprint']}; this one is "
                f"{recipe.fingerprint}.",
                hint="Give another output, or start over with --from-scratch.",
            )
        return TrainResult(
            output=output,
            steps=summary["steps"],
            seconds=0.0,
            best=summary["best"],
            resumed_from=summary["steps"],
            data=summary["data"],
            finished_before=True,
        )
    return None


class DevEvaluation:
    """The fast and the thinking path of a model on a collection, as often as it is called.

    Raises `CollectionError` for a collection that cannot be used, before anything is trained.
    """

    def __init__(self, section: EvaluationSection, encoder: Any = None) -> None:
        self._section = section
        whole = load_collection(section.collection, split=section.split)
        queries, most = sorted(set(whole.queries) & set(whole.qrels)), section.queries
        if most is not None and len(queries) > most:
            # Every n-th in the order of their ids: always the same ones.
            queries = [queries[place] for place in np.linspace(0, len(queries) - 1, most).astype(int)]
        self._collection = whole.with_queries({query: whole.queries[query] for query in queries})
        self._texts = whole.corpus.texts(0, len(whole.corpus.ids))
        self.encoder = None if section.encoder is None else as_encoder(encoder or section.encoder)
        self._fixed: EncodedCorpus | None = None  # a thinker's documents, which training does not move

    def __call__(
        self, language_model: Any, tokenizer: Any, config: TemplateConfig | ThinkerConfig
    ) -> dict[str, float]:
        """The measure of both paths, the tokens of a thought, and the seconds it took.

        The model is left in evaluation mode.
        """
        return self.of(self._embedder(language_model, tokenizer, config))

    def of(self, embedder: ThinkingEmbedder) -> dict[str, float]:
        """The same of an embedder."""
        started, section = time.perf_counter(), self._section
        encoded = self._fixed
        if encoded is None:
            matrix = np.asarray(embedder.encode_documents(self._texts, show_progress_bar=False), np.float32)
            encoded = EncodedCorpus(matrix=matrix, seconds=0.0)
            self._fixed = None if section.encoder is None else encoded
        given: dict[str, Any] = {"embedder": embedder, "corpus": self._collection.corpus, "encoded": encoded}
        systems = [Dense(name="fast", **given)]
        if section.thoughts:
            settings = ThoughtSettings(
                n_thoughts=section.thoughts,
                temperature=section.temperature,
                top_p=section.top_p,
                max_new_tokens=section.max_new_tokens,
                seed=0,
            )
            systems.append(Dense(name="thinking", settings=settings, **given))
        results = evaluate(self._collection, systems, measures=[section.metric], depth=_DEPTH).results
        found = {f"{section.metric} {each.name}": each.means[section.metric] for each in results}
        if section.thoughts:
            found["tokens per thought"] = results[-1].cost.thought_tokens / section.thoughts
        return found | {"seconds": time.perf_counter() - started}

    def _embedder(
        self, language_model: Any, tokenizer: Any, config: TemplateConfig | ThinkerConfig
    ) -> ThinkingEmbedder:
        from o1_retriever.engine.backend import LocalBackend
        from o1_retriever.engine.load import assemble

        if isinstance(config, ThinkerConfig):
            thinker = LocalThinker(
                language_model, tokenizer, prompt=config.prompt, correction=config.correction
            )
            return ThinkingEmbedder.from_parts(thinker, self.encoder, cache=False)
        # The name of the weights would be computed from them, and nothing here is kept under it.
        local = assemble("trained", language_model, tokenizer, template_config=config, weights="in training")
        return ThinkingEmbedder(LocalBackend(local), cache=False)


def train(
    recipe: TrainRecipe,
    *,
    show_progress_bar: bool | None = None,
    restart: bool = False,
    teacher: Any = None,
    told: Told | None = None,
) -> TrainResult:
    """Train as a recipe says, or go on where an earlier run of it was stopped; save the model.

    `restart` removes what an earlier run left. `teacher` is an encoder that stands for the one which the
    recipe names, be it to learn from or to be judged beside; `told` hears of every log. The same recipe,
    whatever happened in between, ends with the same weights. Raises `TrainingError` when the run cannot go on
    (its last checkpoint stays), `OtherRecipeError` for an output of another recipe, `DataError` and
    `ModelError` for what it starts from.
    """
    output = Path(recipe.output)
    work = output / _WORK
    if restart:
        (output / SUMMARY).unlink(missing_ok=True)
        for part in (*work.glob("checkpoint-*"), work / "tensorboard"):
            shutil.rmtree(part, ignore_errors=True)
    done = finished(output, recipe)
    if done is not None:
        return done
    started = time.perf_counter()
    arguments = _arguments(recipe, work)
    seed = recipe.optimisation.seed
    set_seed(seed)
    checkpoint = newest(work, fingerprint=recipe.fingerprint)
    dev = DevEvaluation(recipe.evaluation, teacher) if recipe.evaluation else None
    backbone = open_backbone(recipe.model, recipe.data, seed=seed, device=arguments.device)
    data = work / "data"
    with arguments.main_process_first(desc="tokenising"), enough_space(data):
        rows = open_rows(recipe.data, backbone.template, data, show=show_progress_bar, teacher=teacher)
    if recipe.model.correction is None:  # which leads from the one width to the other
        _check_width(rows, backbone.width)
    logger.info("Training data: %s", rows.report)
    if checkpoint is not None:
        check_data(checkpoint, rows.name)
    _set_steps(arguments, recipe, rows)
    trainer = JointTrainer(
        backbone, arguments, recipe=recipe, rows=rows, show=show_progress_bar, evaluate_dev=dev, told=told
    )
    _run(trainer, checkpoint)
    best = _best_weights(trainer, work)
    result = TrainResult(
        output=output,
        steps=int(trainer.state.global_step),
        seconds=time.perf_counter() - started,
        best=best,
        resumed_from=None if checkpoint is None else step_of(checkpoint),
        data=str(rows.report),
    )
    with whole_weights(trainer.model), enough_space(output):
        if trainer.is_world_process_zero():
            _save(output, replace(backbone, deployed=trainer.deployed))
            result.write(recipe, trainer.state.log_history)
    trainer.accelerator.wait_for_everyone()
    return result


def _save(output: Path, backbone: Backbone) -> None:
    """Write the folder that `ThinkingEmbedder.from_pretrained` loads, or that `LocalThinker` does."""
    for cut_short in output.glob(".tmp??????"):  # what safetensors leaves where it is killed
        cut_short.unlink()
    if isinstance(backbone.deployed, ThinkerConfig):
        kept = backbone.model if hasattr(backbone.model, "peft_config") else without_shards(backbone.model)
        save_thinker(output, kept, backbone.tokenizer, backbone.deployed, base=backbone.base)
    else:
        model = without_shards(merged(backbone.model))
        save_embedder(output, model, backbone.tokenizer, backbone.deployed)


def _arguments(recipe: TrainRecipe, work: Path) -> TrainingArguments:
    optimisation, evaluation = recipe.optimisation, recipe.evaluation
    # The device is known only to the arguments, and the precision depends on it: both are asked once.
    cuda = torch.cuda.is_available()
    dtype = compute_dtype(recipe.model, torch.device("cuda" if cuda else "cpu"))
    dev: dict[str, Any] = {}
    if evaluation is not None:
        dev = {
            "eval_strategy": "steps",
            "eval_steps": evaluation.every,
            "metric_for_best_model": f"eval_{evaluation.figure}",
            "greater_is_better": True,
        }
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=optimisation.queries,
        max_steps=1,  # known when the rows are
        learning_rate=optimisation.learning_rate,
        lr_scheduler_type=_SCHEDULES.get(optimisation.schedule, optimisation.schedule),
        warmup_steps=optimisation.warmup,
        weight_decay=optimisation.weight_decay,
        max_grad_norm=optimisation.max_grad_norm,
        adam_beta2=optimisation.beta2,
        seed=optimisation.seed,
        data_seed=optimisation.seed,
        bf16=dtype == torch.bfloat16,
        use_cpu=not cuda,
        save_strategy="steps",
        save_steps=recipe.checkpoints.every,
        restore_callback_states_from_checkpoint=True,
        report_to=[],
        remove_unused_columns=False,
        label_names=[],
        ddp_find_unused_parameters=False,
        # Processes make different numbers of forwards, and each would send its buffers.
        ddp_broadcast_buffers=False,
        disable_tqdm=True,
        **dev,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several are for several processes, not for DataParallel
    return arguments


def _check_width(rows: TrainingRows, width: int) -> None:
    for name, vectors in (("teacher", rows.teacher), ("index", rows.index)):
        if vectors is not None and len(vectors) and vectors.shape[1] != width:
            raise TrainingError(
                f"The {name}'s vectors have {vectors.shape[1]} numbers and the model's {width}.",
                hint=f"Name another encoder in data.{name}, or another base.",
            )


def _set_steps(arguments: TrainingArguments, recipe: TrainRecipe, rows: TrainingRows) -> None:
    optimisation, world = recipe.optimisation, arguments.world_size
    budget = budget_of(recipe, rows)
    whole = steps_per_epoch(rows.source, size=optimisation.queries, world=world, budget=budget)
    if not whole:
        raise TrainingError(
            f"Found {counted(len(rows), 'row')} for {counted(world, 'process', 'processes')}; "
            "expected at least one for each.",
            hint="Train with fewer processes.",
        )
    steps = optimisation.steps or max(1, round((optimisation.epochs or 1.0) * whole))
    arguments.max_steps = steps
    arguments.logging_steps = max(1, min(10, steps // 20))
    if optimisation.schedule == "plateau":
        falling = max(1, round(optimisation.decay * steps))
        arguments.lr_scheduler_kwargs = {"num_decay_steps": falling, "decay_type": "linear"}


def _run(trainer: JointTrainer, checkpoint: Path | None) -> None:
    from transformers.integrations.integration_utils import TensorBoardCallback

    require("tensorboard", extra="train", purpose="Logging a training run")
    from torch.utils.tensorboard import SummaryWriter

    if trainer.is_world_process_zero():
        folder = Path(str(trainer.args.output_dir)) / "tensorboard"
        writer = SummaryWriter(str(folder), purge_step=step_of(checkpoint) if checkpoint else None)
        trainer.add_callback(TensorBoardCallback(writer))  # type: ignore[no-untyped-call]
    try:
        spares = trainer.recipe.hardware.sparing
        with SparingThreads(trainer.args.device) if spares else contextlib.nullcontext() as trainer.sparing:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except RuntimeError as error:
        words = str(error).lower()
        lost = isinstance(error, torch.distributed.DistError) or any(word in words for word in _LOST)
        if not lost or trainer.args.world_size == 1:
            raise
        reason = str(error).partition(". ")[0]  # what follows is advice to those who write such programs
        raise TrainingError(
            f"Another process of this run was lost at step {trainer.state.global_step}: {reason}.",
            hint="Type the same command: the run goes on from its last checkpoint.",
        ) from error
    finally:
        trainer.progress.close()


def _best_weights(trainer: JointTrainer, work: Path) -> dict[str, float] | None:
    """Put the best checkpoint's weights into the model; return their dev figures."""
    evaluation, state = trainer.recipe.evaluation, trainer.state
    if evaluation is None:
        return None
    judged = [entry for entry in state.log_history if f"eval_{evaluation.figure}" in entry]
    step = state.best_global_step
    if not judged:
        # A run shorter than its first evaluation is judged as it ends.
        figures = trainer.evaluate()
    else:
        if step and step != state.global_step:
            trainer._load_from_checkpoint(str(work / f"checkpoint-{step}"))
        chosen = [entry for entry in judged if entry["step"] == step][-1]
        figures = {name: value for name, value in chosen.items() if name.startswith("eval_")}
        figures["eval_step"] = float(step or 0)
    return {name.removeprefix("eval_"): value for name, value in figures.items()}


_STEPS = 4  # of which the first does not count: it finds out how to compute


def pace(recipe: TrainRecipe) -> tuple[int, float]:
    """(Steps of a pass over a recipe's rows, seconds of a mean one here). Raises what training raises."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    optimisation = recipe.optimisation
    backbone = open_backbone(recipe.model, recipe.data, seed=optimisation.seed, device=device)
    dtype = compute_dtype(recipe.model, device)
    taken = []
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows = open_rows(recipe.data, backbone.template, Path(folder), show=False)
        model = joint_model(backbone, recipe, rows).to(device).train()
        index = None if rows.index is None else unit_vectors(rows.index).to(device)
        drawn, collate = DrawnRows(rows, recipe), Collator(rows, backbone.template, recipe)
        budget, seed = budget_of(recipe, rows), optimisation.seed
        batches = SameSourceBatches(
            rows.source, size=optimisation.queries, steps=_STEPS, seed=seed, budget=budget
        )
        for picks in batches:
            batch = {name: value.to(device) for name, value in collate([drawn[p] for p in picks]).items()}
            started = time.perf_counter()
            rounded = dtype != torch.float32
            with (
                torch.autocast(device.type, dtype, enabled=rounded),
                uncast_inputs(backbone.model, autocast=rounded),
            ):
                joint_step(model, batch, recipe.losses, How(tokens=recipe.chunk_tokens), index)
            model.zero_grad(set_to_none=True)
            taken.append(time.perf_counter() - started)
    whole = steps_per_epoch(rows.source, size=optimisation.queries, budget=budget)
    return whole, sum(taken[1:]) / len(taken[1:])
