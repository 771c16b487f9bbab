"""`o1-retriever serve`, one address for vectors, thoughts and search, and `mcp`, the tools of an agent."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from o1_retriever.cli.models import encoder_name, load_embedder, model_name, thinker_name
from o1_retriever.cli.options import ModelOptions, ThinkingOptions, ThoughtOptions, set_in, with_options
from o1_retriever.cli.terminal import messages, output
from o1_retriever.errors import SettingsError, require
from o1_retriever.storage import written_whole

if TYPE_CHECKING:
    from o1_retriever import Index, ThinkingEmbedder
    from o1_retriever.search.result import SearchOptions
    from o1_retriever_server import Keys, ServerSettings

_DEFAULT_INDEX = Path(".o1-index")

_server = {"rich_help_panel": "Server"}
_limits = {"rich_help_panel": "Limits"}


Indexes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]FOLDER",
        help="An index to search, by its folder's name or another one (repeatable; default: .o1-index "
        "if it is there).",
        rich_help_panel="Index",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where to listen, and who may call."""

    name: Annotated[
        str | None, typer.Option(help="What clients call the model (default: its own name).", **_server)
    ] = None
    host: Annotated[
        str,
        typer.Option(
            envvar="O1_RETRIEVER_HOST", help="Any other address than this machine's needs keys.", **_server
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, typer.Option(envvar="O1_RETRIEVER_PORT", min=0, max=65535, help="0 takes a free one.", **_server)
    ] = 8000
    keys: Annotated[
        Path | None,
        typer.Option(
            envvar="O1_RETRIEVER_KEYS",
            help="A file of keys, one NAME KEY a line; more in $O1_RETRIEVER_API_KEYS (name=key,name=key).",
            **_server,
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name in the Host header that is answered where no key is needed (repeatable).", **_server
        ),
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="An origin whose pages may call this server (repeatable; none by default).", **_server
        ),
    ] = None
    log_texts: Annotated[
        bool,
        typer.Option(
            "--log-texts", help="Write what errors say into the log, with parts of texts.", **_server
        ),
    ] = False


Reports = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER",
        help="What o1-retriever eval --control --report has written, for the page to show (repeatable).",
        rich_help_panel="Index",
    ),
]


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """How much is accepted; the other limits are those of `ServerSettings`."""

    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; one more is answered with 429.", **_limits)
    ] = 128
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.", **_limits)] = (
        60.0
    )
    grace: Annotated[
        int,
        typer.Option(
            min=0, help="Seconds to finish what was accepted when the server is stopped.", **_limits
        ),
    ] = 60
    max_texts: Annotated[int, typer.Option(min=1, help="Texts in a request.", **_limits)] = 2048
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of all texts in a request.", **_limits)] = (
        300_000
    )
    token_ids: Annotated[
        str,
        typer.Option(
            help="Vocabulary of inputs that are token ids: one of tiktoken's, or 'model'.", **_limits
        ),
    ] = "cl100k_base"


@with_options
def serve(
    *,
    index: Indexes = None,
    report: Reports = None,
    server: ServerOptions,
    limits: LimitOptions,
    model: ModelOptions,
    thoughts: ThoughtOptions,
    thinking: ThinkingOptions,
) -> None:
    """Serve vectors, thoughts and search over HTTP, as clients of OpenAI, Cohere and Jina ask for them."""
    require("uvicorn", extra="serve", purpose="The server")
    from o1_retriever.thought import ThoughtSettings
    from o1_retriever_server import Keys, create_app
    from o1_retriever_server.views import read_reports

    # Whatever is wrong is said before anything is loaded.
    read_reports(report or [])
    keys = Keys.read(server.keys)
    _check_address(server.host, keys)
    settings = _settings(server, limits, keys)
    thoughts.settings(ThoughtSettings())
    way = thinking.chosen()
    options: SearchOptions = {} if way is None else {"thinking": way}
    folders = _folders(index)
    name = server.name or _name(model)
    with (
        _listening(server.host, server.port) as listener,
        _loaded(model, thoughts, folders) as (embedder, indexes),
    ):
        app = create_app(
            embedder, indexes, name=name, keys=keys, settings=settings, options=options, reports=report or []
        )
        _log(texts=server.log_texts)
        _run(app, listener, limits.grace, f"Serving {name}")


@with_options
def mcp(
    action: Annotated[
        Literal["install"] | None,
        typer.Argument(help="install: show what to write into the settings of an agent's program."),
    ] = None,
    *,
    write: Annotated[
        Literal["claude-desktop", "claude-code", "cursor", "vscode"] | None,
        typer.Option(help="With install: write it into the settings of this program."),
    ] = None,
    index: Indexes = None,
    model: ModelOptions,
    thoughts: ThoughtOptions,
    thinking: ThinkingOptions,
) -> None:
    """Give an agent tools over MCP, on standard input and output: search, think, explain, passages."""
    require("mcp", extra="serve", purpose="The tools of an agent")
    from o1_retriever.thought import ThoughtSettings

    thoughts.settings(ThoughtSettings())
    way = thinking.chosen()
    options: SearchOptions = {} if way is None else {"thinking": way}
    folders = _folders(index)
    if not folders:
        raise SettingsError("Found no index to give an agent.", hint="Type: o1-retriever index FOLDER")
    if action == "install":
        _install(write, folders, [*set_in(model), *set_in(thoughts), *set_in(thinking)])
        return
    if write:
        raise SettingsError(
            "Found --write without install.", hint=f"Type: o1-retriever mcp install --write {write}"
        )
    from o1_retriever_server.agents import agent_server
    from o1_retriever_server.service import ServerSettings, Service

    with _loaded(model, thoughts, folders) as (embedder, indexes):
        service = Service(embedder, indexes, name=_name(model), settings=ServerSettings(), options=options)
        with contextlib.suppress(KeyboardInterrupt):
            agent_server(service).run("stdio")


@contextlib.contextmanager
def _loaded(
    model: ModelOptions, thoughts: ThoughtOptions, folders: dict[str, Path]
) -> Iterator[tuple[ThinkingEmbedder, dict[str, Index]]]:
    """The embedder that the options name, and the indexes by name, closed at the end."""
    from o1_retriever import Index

    embedder = load_embedder(model)
    embedder.settings = thoughts.settings(embedder.settings)
    with contextlib.ExitStack() as stack:
        opened = {name: Index(path, embedder, create=False) for name, path in folders.items()}
        for each in opened.values():
            stack.enter_context(each)
        yield embedder, opened


def _check_address(host: str, keys: Keys) -> None:
    """Raise `SettingsError` for an address that others can reach, where no key is known."""
    local = host == "localhost"
    with contextlib.suppress(ValueError):
        local = local or ipaddress.ip_address(host).is_loopback
    if not local and not keys:
        raise SettingsError(
            f"Found the address {host} and no key; expected one where other machines can call.",
            hint="Type: O1_RETRIEVER_API_KEYS=name=KEY o1-retriever serve --host ..., or --keys FILE",
        )


def _settings(server: ServerOptions, limits: LimitOptions, keys: Keys) -> ServerSettings:
    from o1_retriever_server.service import LOOPBACK, ServerSettings

    # With a key, a page that points its own name here gets nothing.
    hosts = ("*",) if keys and not server.allow_host else (*LOOPBACK, *(server.allow_host or ()))
    return ServerSettings(
        max_waiting=limits.queue,
        max_seconds=limits.timeout,
        max_texts=limits.max_texts,
        max_tokens=limits.max_tokens,
        token_ids=limits.token_ids,
        hosts=hosts,
        cors_origins=tuple(server.cors_origin or ()),
        log_texts=server.log_texts,
    )


def _folders(given: Sequence[str] | None) -> dict[str, Path]:
    """The folders of the indexes by the names that requests use. `SettingsError` for a name given twice."""
    texts = [str(_DEFAULT_INDEX)] if given is None and _DEFAULT_INDEX.is_dir() else list(given or ())
    folders: dict[str, Path] = {}
    for text in texts:
        name, named, folder = text.partition("=")
        path = Path(folder if named else text).expanduser()
        name = name if named else path.resolve().name.lstrip(".")
        if name in folders:
            raise SettingsError(
                f"Found two indexes named {name!r}; expected a name of its own for each.",
                hint="Type: --index NAME=FOLDER",
            )
        folders[name] = path
    return folders


def _name(model: ModelOptions) -> str:
    """What the model is called: the last part of its name, or those of the thinker and the encoder."""
    whole = model_name(model)
    parts = [whole] if whole else [thinker_name(model), encoder_name(model)]
    return "+".join(part.rstrip("/").rpartition("/")[2] or part for part in parts)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens. Raises `SettingsError` for an address that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise SettingsError(
            f"Cannot listen on {host}, port {port}: {error}.", hint="Type: --port 0"
        ) from None
    with listener:
        yield listener


def _run(app: Any, listener: socket.socket, grace: int, what: str) -> None:
    """Serve until a signal; then what was accepted is finished."""
    import uvicorn

    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                messages().print(f"{what} on {address}", soft_wrap=True, markup=False)

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
        # A client of ours may keep a connection for longer than uvicorn's five seconds.
        timeout_keep_alive=65,
    )
    signal.signal(signal.SIGTERM, _stop)  # uvicorn finishes first, and then hands the signal on
    with contextlib.suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listener])


def _stop(*_: object) -> NoReturn:
    raise SystemExit(0)


def _log(*, texts: bool) -> None:
    """One JSON object on standard output for each request, and for each warning of the library."""
    from o1_retriever_server.middleware import JsonLines, logger

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines(texts=texts))
    logging.getLogger("o1_retriever").handlers = [handler]
    logger.setLevel(logging.INFO)


_NAME = "o1-retriever"


@dataclass(frozen=True, kw_only=True)
class _Client:
    """A program: where its settings are, and how it calls the list of servers."""

    title: str
    file: Path
    key: str = "mcpServers"

    def entry(self, command: Sequence[str]) -> dict[str, Any]:
        """The settings with our tools alone."""
        kind = {"type": "stdio"} if self.key == "servers" else {}
        return {self.key: {_NAME: {**kind, "command": command[0], "args": list(command[1:])}}}

    def write(self, command: Sequence[str]) -> None:
        """Put our tools into the settings, and leave all else as it is. Raises `SettingsError`."""
        settings = self._read()
        servers = settings.setdefault(self.key, {})
        if not isinstance(servers, dict):
            raise SettingsError(f"{self.file} has {self.key} = {servers!r:.60}; expected an object.")
        servers.update(self.entry(command)[self.key])
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.file) as file:
            file.write(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")

    def _read(self) -> dict[str, Any]:
        if not self.file.is_file():
            return {}
        text = self.file.read_text(encoding="utf-8")
        try:
            settings = json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise SettingsError(f"{self.file} is not JSON ({error}); nothing was written.") from None
        if not isinstance(settings, dict):
            raise SettingsError(f"{self.file} is no JSON object; nothing was written.")
        return settings


def _clients() -> dict[str, _Client]:
    """The programs that are known, by the name for `--write`."""
    home = Path.home()
    folders = {"darwin": home / "Library" / "Application Support", "win32": home / "AppData" / "Roaming"}
    desktop = folders.get(sys.platform, home / ".config") / "Claude"
    return {
        "claude-desktop": _Client(title="Claude Desktop", file=desktop / "claude_desktop_config.json"),
        "claude-code": _Client(title="Claude Code, in this folder", file=Path(".mcp.json")),
        "cursor": _Client(title="Cursor", file=home / ".cursor" / "mcp.json"),
        "vscode": _Client(title="VS Code, in this folder", file=Path(".vscode") / "mcp.json", key="servers"),
    }


def _install(name: str | None, folders: Mapping[str, Path], options: Sequence[str]) -> None:
    """Show what each program needs in its settings, or write it into those of one."""
    indexes = [part for each, path in folders.items() for part in ("--index", f"{each}={path.resolve()}")]
    # A program is started with another search path and in another folder.
    placed = [str(Path(each).resolve()) if Path(each).exists() else each for each in options]
    command = [sys.executable, "-m", "o1_retriever", "mcp", *indexes, *placed]
    if name is not None:
        client = _clients()[name]
        client.write(command)
        messages().print(
            f"Written into {client.file}. Start {client.title} again.", soft_wrap=True, markup=False
        )
        return
    for client in _clients().values():
        output().print(f"{client.title}: {client.file}", soft_wrap=True, markup=False)
        output().print(json.dumps(client.entry(command), indent=2), soft_wrap=True, markup=False)
