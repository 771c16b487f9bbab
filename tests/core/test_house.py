"""Rules of the house that no type checker sees: imports point one way, the package is light, names exist."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import o1_retriever
from o1_retriever import errors

CORE = Path(o1_retriever.__file__).parent
ADAPTERS = CORE.parent / "integrations"
TRAINING = CORE.parent / "training" / "o1_retriever_training"
FRAMEWORKS = {
    "langchain", "langchain_core", "llama_index", "langchain_o1_retriever", "llama_index_o1_retriever",
    "chroma_o1_retriever", "mteb_o1_retriever", "haystack", "haystack_o1_retriever", "dspy",
    "dspy_o1_retriever", "fastembed_o1_retriever", "o1_retriever_training", "o1_retriever_server", "fastapi",
    "starlette", "uvicorn", "prometheus_client", "mcp", "ray", "ray_o1_retriever", "stores_o1_retriever",
    "qdrant_client", "lancedb", "psycopg",
}  # fmt: skip
# What answers others over HTTP, and the frameworks for that.
SERVER = {
    "o1_retriever_server": {"fastapi", "starlette", "uvicorn", "prometheus_client", "mcp", "ray"},
    "stores_o1_retriever": {"qdrant_client", "lancedb", "psycopg"},
}
# The rooms of the core, lowest first: a module imports from lower ones and from its own alone. A module that
# stands in another place than its room has a line of its own.
LAYERS = [
    "errors", "concurrency", "storage", "reporting", "query", "thought", "vectors",
    "cache", "endpoint", "guard", "engine", "thinkers", "encoders", "thinking", "concurrency.awaiting",
    "engine.backend", "embedder", "documents", "ranking", "index", "search",
    "evaluation", "cli", "__main__",
]  # fmt: skip
LOOSE = 12  # modules at the top of the core
HEAVY = {"torch", "transformers", "chromadb", "sentence_transformers", "bitsandbytes", "openai", "numpy"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def modules(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield path, parsed(path)


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax tree of each of our modules, by its name."""
    found = {}
    for base, package in ((CORE.parent, CORE), (ADAPTERS, ADAPTERS), (TRAINING.parent, TRAINING)):
        for path, tree in modules(package):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = tree
    return found


def graph(every: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Which of our modules each one imports: in functions and for types too."""
    edges: dict[str, set[str]] = {}
    for name, tree in every.items():
        edges[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                edges[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.module, f"{name} imports from a relative place; expected whole names"
                assert not node.level, f"{name} imports from a relative place; expected whole names"
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                edges[name] |= whole & set(every) or {node.module}
        edges[name] &= set(every) - {name}
    return edges


@cache
def our_graph() -> dict[str, set[str]]:
    """The graph of all our modules."""
    return graph(trees())


def reachable(edges: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = edges[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """The groups of modules that reach each other."""
    edges = dict(edges)
    while done := {name for name, others in edges.items() if not others & set(edges)}:
        edges = {name: others for name, others in edges.items() if name not in done}
    edges = {name: others & set(edges) for name, others in edges.items()}
    reach = {name: reachable(edges, name) for name in edges}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in edges
        if name in reach[name]
    }
    return [set(group) for group in groups]


def test_a_circle_is_seen_in_functions_and_for_types_too() -> None:
    texts = {
        "a": "from p import b",
        "p.b": "if TYPE_CHECKING:\n    import c.d",
        "c.d": "def f():\n    from a import x",
        "e": "import a",
        "p": "",
    }
    edges = graph({name: ast.parse(text) for name, text in texts.items()})
    assert edges["p.b"] == {"c.d"}
    assert edges["e"] == {"a"}
    edges["a"] = {"p.b"}
    assert circles(edges) == [{"a", "p.b", "c.d"}]


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(our_graph()) == []


def layer(name: str) -> int:
    """The place of a module of the core: that of its own line in the table, or of its room."""
    own = name.removeprefix("o1_retriever.")
    assert own in LAYERS or own.split(".")[0] in LAYERS, f"{own}: write its room into LAYERS"
    return LAYERS.index(own if own in LAYERS else own.split(".")[0])


def test_inside_the_core_imports_point_down() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in our_graph().items()
        for other in others
        if name.startswith("o1_retriever.")
        and other.startswith("o1_retriever.")
        and name.split(".")[1] != other.split(".")[1]
        and layer(name) < layer(other)
    ]
    assert not wrong, wrong


def test_few_modules_stand_loose_at_the_top() -> None:
    loose = [path.name for path in CORE.glob("*.py")]
    assert len(loose) <= LOOSE, loose


def checks_queries(tree: ast.Module) -> bool:
    """Whether a module checks a query or reads a conversation itself."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        what = {keyword.arg: keyword.value for keyword in node.keywords}.get("what")
        if name == "Conversation.of" or (
            name in ("check_text", "check_texts")
            and isinstance(what, ast.Constant)
            and what.value in ("query", "question", "queries")
        ):
            return True
    return False


def test_a_query_is_checked_and_a_conversation_read_in_one_module() -> None:
    assert [name for name, tree in trees().items() if checks_queries(tree)] == ["o1_retriever.query"]


def test_the_core_imports_no_framework_and_no_training() -> None:
    for path, tree in modules(CORE):
        assert not imported(tree) & FRAMEWORKS, path


def test_an_adapter_knows_its_own_framework_and_the_core_alone() -> None:
    packages = {path.name for path in ADAPTERS.iterdir() if (path / "__init__.py").is_file()}
    assert packages == {*SERVER, *(name for name in FRAMEWORKS if name.endswith("_o1_retriever"))}
    for path, tree in modules(ADAPTERS):
        own = path.relative_to(ADAPTERS).parts[0]
        known = {
            own,
            *SERVER.get(own, ()),
            own.removesuffix("_o1_retriever"),
            f"{own.removesuffix('_o1_retriever')}_core",
        }
        assert not imported(tree) & FRAMEWORKS - known, path


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=CORE.parent
    )
    return set(run.stdout.split())


def test_importing_the_package_is_light_and_silent() -> None:
    assert not loaded_by("import o1_retriever") & HEAVY
    assert "torch" not in loaded_by(
        "from o1_retriever import ThinkingEmbedder, Retriever, Index, ThoughtSettings"
    )
    run = subprocess.run(
        [sys.executable, "-W", "always", "-c", "import o1_retriever"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == run.stderr == ""


def test_the_public_names_are_there() -> None:
    for name in o1_retriever.__all__:
        assert getattr(o1_retriever, name) is not None
        assert name in dir(o1_retriever)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        o1_retriever.Nothing  # noqa: B018


def test_every_extra_that_a_message_names_exists(root: Path) -> None:
    extras = set(tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = set()
    for _, tree in [*modules(CORE), *modules(ADAPTERS)]:
        for node in ast.walk(tree):
            # What pydantic does with other fields has the same name.
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") != "ConfigDict":
                given = {keyword.arg: keyword.value for keyword in node.keywords}.get("extra")
                named |= {given.value} if isinstance(given, ast.Constant) else set()
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named |= set(re.findall(r"o1-retriever\[([a-z0-9-]+)\]", node.value))
    assert named, "no message names an extra: the search is broken"
    assert named <= extras


def test_the_tree_of_errors_is_drawn_completely() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if kind.__module__ == errors.__name__:
            assert re.search(rf"\b{name}\b", errors.__doc__ or ""), name
            assert issubclass(kind, errors.O1RetrieverError)


def test_nothing_is_printed_by_the_library() -> None:
    for path, tree in [*modules(CORE), *modules(ADAPTERS)]:
        calls = [
            n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"
        ]
        assert not calls, path
