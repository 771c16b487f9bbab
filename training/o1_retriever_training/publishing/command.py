"""`o1-retriever publish`: put a trained model on the Hub, or show beforehand what would be sent."""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from o1_retriever.cli.models import quiet
from o1_retriever.cli.options import with_options
from o1_retriever.cli.terminal import messages, output, warn
from o1_retriever.reporting import counted
from o1_retriever.thinkers.config import CONFIG_NAME as THINKER

if TYPE_CHECKING:
    from rich.table import Table

    from o1_retriever_training.publishing.card import CardFacts
    from o1_retriever_training.publishing.staging import Staged

_card = functools.partial(typer.Option, rich_help_panel="Model card")
_model = functools.partial(typer.Option, rich_help_panel="Model")
_STAGING = "New folder for what is sent, to be looked at (default: a passing one)."
_QLORA = "An adapter was trained on its base in NF4, or was not (default: as the recipe says)."


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What the model card says."""

    license: Annotated[str | None, _card(help="Such as apache-2.0.")] = None
    base_model: Annotated[str | None, _card(help="Hub id of what it was trained from.")] = None
    dataset: Annotated[list[str] | None, _card(help="Hub id of training data (repeatable).")] = None
    language: Annotated[list[str] | None, _card(help="Such as en (repeatable).")] = None
    results: Annotated[
        list[Path] | None, _card(help="Report folder or results.jsonl of eval (repeatable).")
    ] = None
    recipe: Annotated[Path | None, _card(help="Recipe of the training (default: the run's).")] = None

    def facts(self, repo: str) -> CardFacts:
        """What the card is written from. Raises `InputError` for results that cannot be read."""
        from o1_retriever_training.publishing.card import CardFacts, read_figures

        return CardFacts(
            repo=repo,
            license=self.license,
            base_model=self.base_model,
            datasets=tuple(self.dataset or ()),
            language=tuple(self.language or ()),
            figures=tuple(read_figures(self.results or [])),
        )


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """What is made of the weights."""

    merged: Annotated[
        bool, _model("--merged", help="Send a thinker as a model of its own, added to its base.")
    ] = False
    nf4: Annotated[bool, _model("--nf4", help="Add a copy in 4 bits, in the folder nf4.")] = False
    base: Annotated[str | None, _model(help="Base of an adapter (default: as its config says).")] = None
    qlora: Annotated[bool | None, _model("--qlora/--no-qlora", help=_QLORA)] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], _model(help="Type of an adapter's merged weights.")
    ] = "auto"


@with_options
def publish(
    folder: Annotated[Path, typer.Argument(help="What a training made: a model, or an adapter.")],
    *,
    repo: Annotated[str, typer.Option(metavar="USER/NAME", help="Where it goes on the Hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="For everybody to see (default: private).")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent and what would not, and end.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what the repository holds, and remove what is not sent.")
    ] = False,
    staging: Annotated[Path | None, typer.Option(metavar="FOLDER", help=_STAGING)] = None,
    weights: WeightOptions,
    card: CardOptions,
) -> None:
    """Put a trained model on the Hugging Face Hub; the same command goes on where it was stopped."""
    from o1_retriever_training.publishing.hub import check_name, check_token
    from o1_retriever_training.publishing.staging import StageOptions, stage

    check_name(repo)
    facts = card.facts(repo)
    if not dry_run:
        check_token()
    with tempfile.TemporaryDirectory(prefix="o1-publish-") as passing:
        place = staging or Path(passing)
        options = StageOptions(**vars(weights), recipe=card.recipe)
        staged = stage(folder, place, facts=facts, options=options, say=_long_work)
        _show(staged)
        for note in staged.notes:
            warn(note)
        if dry_run:
            where = "publicly" if public else "privately"
            _say(f"\nNothing was sent. Without --dry-run this goes to {repo}, {where}.")
            if staging is not None:
                _say(f"It lies in {staging} to be looked at.")
            return
        _upload(staged, repo, public=public, force=force)


def _upload(staged: Staged, repo: str, *, public: bool, force: bool) -> None:
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    from o1_retriever_training.publishing.hub import publish as send

    if not sys.stderr.isatty():
        disable_progress_bars()
    _note(f"Sending to {repo}")
    sent = send(staged, repo, public=public, force=force, say=_note)
    were = "was" if len(sent.kept) == 1 else "were"
    kept = f", {len(sent.kept)} {were} there" if sent.kept else ""
    removed = f", {len(sent.removed)} removed" if sent.removed else ""
    seen = "private" if sent.private else "public"
    _say(f"\n{sent.url} ({seen}): {counted(len(sent.sent), 'file')} sent{kept}{removed}.")
    how = f'from_pretrained("{sent.repo}")'
    if THINKER in (*sent.sent, *sent.kept):
        how = f'from_parts("{sent.repo}", ENCODER)'
    _say(f"Load it: ThinkingEmbedder.{how}")


def _show(staged: Staged) -> None:
    from rich.filesize import decimal

    sent = [(file.path, decimal(file.size)) for file in staged.files]
    total = decimal(sum(file.size for file in staged.files))
    bold = (f"[bold]{counted(len(sent), 'file')}", f"[bold]{total}")
    output().print(_table(("sent", "size"), [*sent, bold]))
    if staged.left_out:
        output().print()
        left = [(each.path, decimal(each.size), each.reason) for each in staged.left_out]
        output().print(_table(("left out", "size", "because"), left))


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_edge=False)
    for head in heads:
        size = head == "size"
        table.add_column(head, justify="right" if size else "left", no_wrap=size, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _long_work(text: str) -> None:
    # Only now, because importing the model library is what takes longest of the rest.
    quiet()
    _note(text)


def _note(text: str) -> None:
    messages().print(f"{text} ...", soft_wrap=True)


def _say(text: str) -> None:
    output().print(text, soft_wrap=True)
