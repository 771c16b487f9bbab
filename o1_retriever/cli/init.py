"""`o1-retriever init`: three questions, a file of settings, an index, and the first answer."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from o1_retriever.cli.doctor import model_finding, named_models
from o1_retriever.cli.index import FileOptions, show_report
from o1_retriever.cli.models import ENCODER, THINKER, load_embedder, load_late
from o1_retriever.cli.options import FILE, IndexOptions, ModelOptions, named, with_options
from o1_retriever.cli.terminal import output, working
from o1_retriever.errors import DocumentError, SettingsError
from o1_retriever.storage import written_whole

if TYPE_CHECKING:
    from o1_retriever.embedder import ThinkingEmbedder
    from o1_retriever.index.index import Index

_DOCUMENTS = "Which folder has your documents?"
_MODEL = "Which model thinks? A folder, a Hub id, a .gguf file, or an address like http://127.0.0.1:11434/v1"
_ENCODER = "Which sentence-transformers model makes the vectors?"


@with_options
def init(
    documents: Annotated[
        Path | None, typer.Argument(help="The folder with your documents.", show_default=False)
    ] = None,
    *,
    question: Annotated[
        str | None, typer.Option(help="The first question to ask (an empty one: none).")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help=f"Write a new {FILE} in the place of an old one.")
    ] = False,
    target: IndexOptions,
    model: ModelOptions,
) -> None:
    """Begin: answer three questions, and find a file of settings, an index and the first answer.

    What is named on the command line, in the environment or in an old file is not asked; where nobody
    answers, the defaults are taken.
    """
    file = Path(FILE)
    if file.exists() and not force:
        raise SettingsError(
            f"Found {file.resolve()}; expected a folder without one.",
            hint="Type: o1-retriever init --force, or change the file.",
        )
    folder = documents or Path(_asked(_DOCUMENTS, "."))
    if not folder.is_dir():
        raise DocumentError(
            str(folder), "there is no such folder; expected one with documents.", hint="Check the path."
        )
    chosen = choose(model)
    _check(chosen)
    _write(file, folder, settings_of(chosen, target))
    _begin(folder, chosen, target, question)


def _asked(question: str, default: str = "") -> str:
    """The answer; the default for an empty one, and where nobody answers."""
    try:
        return input(f"{question} [{default}] " if default else f"{question} ").strip() or default
    except EOFError:
        return default


def choose(given: ModelOptions) -> ModelOptions:
    """The model and the encoder, asked for where the command line does not name them."""
    from o1_retriever.engine.template import CONFIG_NAME

    if given.model:
        return given
    thinker = given.thinker or _asked(_MODEL, THINKER)
    if (Path(thinker).expanduser() / CONFIG_NAME).is_file() and not (given.thinker or given.encoder):
        # Trained to think and to embed: it makes the vectors itself.
        return replace(given, model=thinker)
    encoder = given.encoder or _asked(_ENCODER, ENCODER)
    return replace(given, thinker=thinker, encoder=encoder)


def _check(options: ModelOptions) -> None:
    """Raise `SettingsError` for a model that cannot be used, before anything is written."""
    for name in named_models(options):
        finding, _ = model_finding(name, options)
        if finding.state == "problem":
            raise SettingsError(f"{finding.about}: {finding.found}", hint=finding.hint)


def settings_of(*groups: ModelOptions | IndexOptions) -> dict[str, str | bool]:
    """What is written: the index, and what of the models is not as it is by default."""
    found: dict[str, str | bool] = {}
    for group in groups:
        default = type(group)()
        for name, field in named(type(group)).items():
            value = getattr(group, field)
            if name == "index" or value != getattr(default, field):
                found[name] = value if isinstance(value, bool) else str(value)
    return found


def _write(file: Path, folder: Path, settings: Mapping[str, str | bool]) -> None:
    lines = [f"# After changes among your documents: o1-retriever index {shlex.quote(str(folder))}"]
    # A text in JSON is one in TOML as well.
    lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()]
    with written_whole(file) as opened:
        opened.write("\n".join(lines) + "\n")
    output().print(f"Wrote {file}, which all commands in this folder read.", markup=False)


def _begin(folder: Path, model: ModelOptions, target: IndexOptions, question: str | None) -> None:
    """Index the folder, and ask the first question."""
    from o1_retriever.index.folder import sync_folder
    from o1_retriever.index.index import Index

    embedder = load_embedder(model, recalls=True)
    with Index(target.index, embedder) as index:
        done = sync_folder(index, folder, options=FileOptions().folder_options())
        show_report(done, folder, index.count(), target, model)
        if index.count():
            asked = _asked("Your first question (empty: none):") if question is None else question
            if asked:
                _answer(embedder, index, asked)


def _answer(embedder: ThinkingEmbedder, index: Index, question: str) -> None:
    from o1_retriever.search.render import result_view
    from o1_retriever.search.retriever import Retriever

    load_late(embedder, [question])
    with working("Thinking"):
        result = Retriever(embedder, index).search(question)
    output().print(result_view(result))
