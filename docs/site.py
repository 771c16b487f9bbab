"""The pages of the site that are made of other files of the repository; hooks of MkDocs (see mkdocs.yml).

Links of a page are those of the repository, as one reads them in an editor: each leads to the page that is
made of that file, or to a copy of it.
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import BuildError
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = get_plugin_logger("site")
ROOT = Path(__file__).resolve().parent.parent
# Pages of the site by the file that they are made of; whatever else is linked gets a copy.
PAGES = {
    "README.md": "index.md",
    "cookbook/README.md": "cookbook/index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
# The programming interface: a page's title, and the modules whose `__all__`, or names, it shows.
PYTHON: dict[str, list[str]] = {
    "o1_retriever": ["o1_retriever", "o1_retriever.query", "o1_retriever.search.result"],
    "Thinkers and encoders": ["o1_retriever.thinkers", "o1_retriever.encoders", "o1_retriever.guard"],
    "Documents and index": ["o1_retriever.documents", "o1_retriever.index.index",
                            "o1_retriever.index.folder"],
    "Cache": ["o1_retriever.cache"],
    "Evaluation": ["o1_retriever.evaluation"],
    "Errors": ["o1_retriever.errors"],
    "LangChain": ["langchain_o1_retriever"],
    "LlamaIndex": ["llama_index_o1_retriever"],
    "Chroma": ["chroma_o1_retriever"],
    "Haystack": ["haystack_o1_retriever"],
    "DSPy": ["dspy_o1_retriever"],
    "fastembed": ["fastembed_o1_retriever"],
    "MTEB": ["mteb_o1_retriever"],
    "Server": ["o1_retriever_server"],
    "Training": ["o1_retriever_training.synthesize:synthesize", "o1_retriever_training.vote:vote",
                 "o1_retriever_training.make_data:make_data", "o1_retriever_training.adapt:adapt",
                 "o1_retriever_training.recipe:Recipe", "o1_retriever_training.joint.recipe:TrainRecipe"],
}  # fmt: skip
_LARGE = 300_000  # bytes of a file that is named in the list of its folder, and not copied
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_origins: dict[str, str] = {}  # of a page, the file that it is made of


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages that are made into the navigation, and those that nobody has given a place to its end."""
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    left = sorted(
        path.name for path in (ROOT / "docs").glob("*.md") if path.name not in {*named, "README.md"}
    )
    config.nav = [*_filled(config.nav), *([{"More": left}] if left else [])]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of other files, and copies of all that a page links to."""
    for file in files.documentation_pages():
        _origins[file.src_uri] = f"docs/{file.src_uri}"
    made = dict(_made())
    for uri, (origin, text) in made.items():
        _origins[uri] = origin
        files.append(File.generated(config, uri, content=text))
    waiting = [*files.documentation_pages()]
    seen = {file.src_uri for file in files}
    while waiting:
        page = waiting.pop()
        for target in _targets(_origins[page.src_uri], page.content_string):
            uri = home(target)
            if uri in seen or not (ROOT / target).exists():
                continue
            seen.add(uri)
            _origins[uri] = target
            added = _copy(config, uri, target)
            files.append(added)
            waiting += [added] if added.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead each link to the page or the copy that is made of the file that it names."""
    here = page.file.src_uri
    origin = _origins[here]

    def led(found: re.Match[str]) -> str:
        target, fragment = _split(found[2])
        if target is None:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        where = posixpath.relpath(home(path), posixpath.dirname(here) or ".")
        return f"{found[1]}{where}{fragment}{found[3]}"

    return _outside_code(markdown, lambda text: _LINK.sub(led, text))


def on_post_build(config: MkDocsConfig) -> None:
    """Follow every link of the built pages. Raises `BuildError` with those that lead nowhere."""
    site = Path(config.site_dir)
    pages = {path: _Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    broken = []
    for path, links in pages.items():
        for link in sorted(links.targets):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            there = path if not parts.path else Path(posixpath.normpath(path.parent / unquote(parts.path)))
            anchors = pages[there].anchors if there in pages else set()
            if not there.exists() or (
                parts.fragment and there in pages and unquote(parts.fragment) not in anchors
            ):
                broken.append(f"{path.relative_to(site)}: {link}")
    if broken:
        raise BuildError(f"{len(broken)} links lead nowhere:\n" + "\n".join(broken))
    count = sum(len(links.targets) for links in pages.values())
    log.info("%d links of %d pages followed, none is broken", count, len(pages))


class _Links(HTMLParser):
    """Where a page leads to, and the places in it that others may lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = {"", "__top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element's links and names."""
        for name, value in attrs:
            if (
                name in ("href", "src")
                and value
                and not value.startswith(("data:", "mailto:", "javascript:"))
            ):
                self.targets.add(value)
            elif name in ("id", "name") and value:
                self.anchors.add(unquote(value))


def home(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path in PAGES:
        return PAGES[path]
    if (ROOT / path).is_dir() or path.endswith("/README.md"):
        return f"repository/{path.removesuffix('/README.md')}/index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("cookbook/") and path.endswith(".ipynb"):
        return path.removesuffix(".ipynb") + ".md"
    return f"repository/{path}"


def _split(link: str) -> tuple[str | None, str]:
    """A link to a file of the repository and its fragment; None for one elsewhere, or into its own page."""
    parts = urlsplit(link)
    if parts.scheme or not parts.path:
        return None, ""
    return parts.path, f"#{parts.fragment}" if parts.fragment else ""


def _outside_code(markdown: str, change: Any) -> str:
    """A page whose text is changed, and whose blocks of code are not."""
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


def _targets(origin: str, text: str) -> Iterator[str]:
    for _, link, _ in _LINK.findall(text):
        target, _ = _split(link)
        if target is not None:
            yield posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _copy(config: MkDocsConfig, uri: str, target: str) -> File:
    path = ROOT / target
    if (path / "README.md").is_file():
        _origins[uri] = f"{target}/README.md"
        path /= "README.md"
    if not path.is_dir():
        return File.generated(config, uri, abs_src_path=str(path))
    lines = []
    for each in sorted(path.iterdir()):
        if each.is_file() and each.stat().st_size < _LARGE:
            lines.append(f"- [{each.name}]({target}/{each.name})")
        elif not each.name.startswith((".", "__")):
            lines.append(f"- {each.name}")
    _origins[uri] = "index"  # its links are from the top of the repository
    return File.generated(config, uri, content=f"# {target}\n\n" + "\n".join(lines) + "\n")


def _made() -> Iterator[tuple[str, tuple[str, str]]]:
    """Pages that have no file of their own: their place, what their links are relative to, and their text."""
    for path, uri in PAGES.items():
        if not (ROOT / path).is_file():
            continue
        yield uri, (path, (ROOT / path).read_text(encoding="utf-8"))
    for path in _notebooks():
        yield f"cookbook/{path.stem}.md", (f"cookbook/{path.name}", _notebook(path))
    yield "results.md", ("docs/results.md", _results())
    yield "reference/commands.md", ("docs/reference/commands.md", _commands())
    for title, modules in PYTHON.items():
        yield _python_uri(title), (f"docs/{_python_uri(title)}", _python(title, modules))


def _filled(nav: Any) -> Any:
    """The navigation with its two lists of pages that are made."""
    lists: dict[str, list[Any]] = {
        "Cookbook": [*_contents(), *({_title(path): f"cookbook/{path.stem}.md"} for path in _notebooks())],
        "Python": [{title: _python_uri(title)} for title in PYTHON],
    }
    if isinstance(nav, list):
        return [_filled(each) for each in nav]
    if isinstance(nav, dict):
        return {name: lists[name] if below == [] else _filled(below) for name, below in nav.items()}
    return nav


# Notebooks


def _contents() -> list[Any]:
    return [{"What is where": "cookbook/index.md"}] if (ROOT / "cookbook" / "README.md").is_file() else []


@cache
def _notebooks() -> list[Path]:
    return sorted((ROOT / "cookbook").glob("[0-9]*.ipynb"))


def _cells(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def _title(path: Path) -> str:
    first = "".join(_cells(path)[0]["source"])
    return re.sub(r"^#+\s*", "", first.splitlines()[0]).strip()


def _notebook(path: Path) -> str:
    """A notebook as Markdown: text, code, and what was printed or drawn."""
    parts = []
    for cell in _cells(path):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(f"```python\n{source}\n```")
            parts += [shown for each in cell["outputs"] if (shown := _shown(each))]
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        drawn = "".join(data["image/png"]).strip()
        return f'<img alt="what the cell draws" src="data:image/png;base64,{drawn}">'
    if "image/svg+xml" in data:
        return f'<div markdown="0">{"".join(data["image/svg+xml"])}</div>'
    drawn = "".join(data.get("text/html", ""))
    if drawn.startswith("<pre"):  # an explanation; tables of others bring styles that are not the site's
        return f'<div class="drawn" markdown="0">{drawn}</div>'
    text = "".join(output.get("text") or data.get("text/plain") or "")
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip()
    return f"```text\n{text}\n```" if text and output.get("name") != "stderr" else ""


# The programming interface


def _python_uri(title: str) -> str:
    return f"reference/python/{title.lower().replace(' ', '-').replace('_', '-')}.md"


def _python(title: str, modules: list[str]) -> str:
    parts = [f"# {title}"]
    for module in modules:
        name, _, chosen = module.partition(":")
        own = [chosen] if chosen else _public(name)
        if own is None:
            parts.append(f"::: {name}")
            continue
        parts.append(f"`from {name} import ...`")
        parts += [f"::: {name}.{each}" for each in own if not each.startswith("__")]
    return "\n\n".join(parts) + "\n"


def _public(module: str) -> list[str] | None:
    """What a package says it offers; None for a module that has no such list."""
    path = module.replace(".", "/")
    places = [ROOT / source / path for source in (".", "integrations", "training")]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    source = next(file for file in files if file.is_file())
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


# Commands


def _commands() -> str:
    """Every command with its arguments and options, from the program itself."""
    import typer

    from o1_retriever.cli.app import OWN, app

    group: Any = typer.main.get_command(app)
    context = group.make_context("o1-retriever", ["--version-of-docs"], resilient_parsing=True)
    parts = [
        "# Commands",
        "Every option has a help text on the command line too: `o1-retriever COMMAND --help`. "
        "An option that is marked with ⚙ can also be set by a variable, `O1_RETRIEVER_NAME`, or in a file, "
        "`o1-retriever.toml` ([local models](../local-models.md)). "
        "`o1-retriever --install-completion` makes the shell complete commands and options.",
    ]
    for name in OWN:
        parts += _command(name, group.get_command(context, name), context)
    return "\n\n".join(parts) + "\n"


def _command(name: str, lazy: Any, context: Any, above: str = "o1-retriever") -> Iterator[str]:
    from o1_retriever.cli.app import load

    real = load(lazy.point) if hasattr(lazy, "point") else lazy
    yield f"{'##' if above == 'o1-retriever' else '###'} {name}"
    yield (real.help or lazy.help or "").replace("\f", "").strip()
    below = getattr(real, "commands", {})
    arguments = " ".join(
        _metavar(each) if each.required else f"[{_metavar(each)}]"
        for each in real.params
        if each.param_type_name == "argument"
    )
    yield f"```\n{above} {name} {'COMMAND' if below else arguments}".rstrip() + (
        " [OPTIONS]\n```" if real.params else "\n```"
    )
    yield from _options(real, context)
    for under, command in below.items():
        yield from _command(under, command, context, f"{above} {name}")


def _options(command: Any, context: Any) -> Iterator[str]:
    panels: dict[str, list[str]] = {}
    for each in command.params:
        if each.name == "help" or getattr(each, "hidden", False):
            continue
        panel = getattr(each, "rich_help_panel", None) or (
            "Arguments" if each.param_type_name == "argument" else "Options"
        )
        panels.setdefault(panel, []).append(_option(each, context))
    for panel, rows in panels.items():
        yield f"| {panel} | |\n| --- | --- |\n" + "\n".join(rows)


def _metavar(each: Any) -> str:
    return str(each.metavar or each.name).upper()


def _option(each: Any, context: Any) -> str:
    names = [*each.opts, *each.secondary_opts] if each.param_type_name == "option" else [_metavar(each)]
    mark = " ⚙" if _is_configured(each) else ""
    default = (
        each.default
        if isinstance(each.default, (str, int, float)) and not isinstance(each.default, bool)
        else None
    )
    said = [each.help or "", f"Default: `{default}`." if default not in (None, "") else ""]
    text = " ".join(part for part in said if part).replace("|", "\\|").replace("<", "&lt;")
    return f"| {', '.join(f'`{name}`' for name in names)}{mark} | {text} |"


@cache
def _configured() -> set[str]:
    from o1_retriever.cli.options import Configured, _subclasses, named

    return {f"--{name.replace('_', '-')}" for group in _subclasses(Configured) for name in named(group)}


def _is_configured(each: Any) -> bool:
    return any(name in _configured() for name in each.opts)


# Measurements

_MEASURED = {
    "quality": ("What is found", "python -m benchmarks.quality.run"),
    "curves": ("Thoughts, and how long they are", "python -m benchmarks.quality.curves"),
    "audit": ("Whether thoughts point at the right passages", "python -m benchmarks.quality.audit"),
    "local_models": ("Small models as thinkers", "python -m benchmarks.quality.local_models"),
    "robustness": ("Other wordings of the queries", "python -m benchmarks.quality.robustness"),
    "retrieval": ("Fusion, pooling, guard, adaptive thinking", "python -m benchmarks.retrieval.run"),
    "evaluation": ("Agreement with other evaluations", "python -m benchmarks.evaluation.run"),
    "documents": ("Reading documents", "python -m benchmarks.documents.run"),
    "speed": ("Speed and memory", "python -m benchmarks.speed"),
    "synthesis": ("Making training data", "python -m benchmarks.synthesis.throughput"),
    "joint": ("A step of training", "python -m benchmarks.joint.step"),
    "fictional_world": ("A world where only thinking helps", "python -m benchmarks.fictional_world"),
}  # fmt: skip


def _results() -> str:
    """All recorded figures; the tables of the other pages are made of them."""
    parts = [
        "---\nsearch:\n  boost: 0.2\n---",  # its names would be found before the pages that explain them
        "# Results",
        "Every figure that is recorded, from [benchmarks/results](../benchmarks/results), with the machine "
        "and the commit that it was measured with. What they mean stands on the pages that show them: "
        "[home](../README.md#what-it-finds), [search](search.md), [evaluation](evaluation.md), "
        "[the engine](engine.md).",
    ]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if {"name", "value", "unit"} <= set(row)]
        if rows:
            parts += _figures(path.stem, rows)
    return "\n\n".join(parts) + "\n"


def _figures(name: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    title, command = _MEASURED.get(name, (name.replace("_", " ").capitalize(), ""))
    yield f"## {title}"
    machines = sorted({f"{row['machine']}" for row in rows})
    dates = sorted(row["date"][:10] for row in rows)
    yield (
        f"`{command}`, " if command else ""
    ) + f"{' to '.join(sorted({dates[0], dates[-1]}))}, on: {'; '.join(machines)}."
    lines = [
        f"    | `{row['name']}` | {row['value']:,} | {row['unit']} | {row['commit'][:7]} |".replace(
            "`|`", "`\\|`"
        )
        for row in rows
    ]
    head = "    | figure | value | unit | commit |\n    | --- | ---: | --- | --- |\n"
    yield f'??? note "{len(rows)} figures"\n\n{head}' + "\n".join(lines)
