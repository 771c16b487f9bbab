"""The tools of an agent, asked by the official client over HTTP and over standard input and output."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("mcp", reason="needs the extra `serve`")
pytest.importorskip("chromadb", reason="needs the extra `index`")

import httpx
from mcp import StdioServerParameters
from mcp.client import Client
from mcp.client.stdio import stdio_client

from o1_retriever import Index
from o1_retriever.documents import Document
from o1_retriever_server import Keys, ServerSettings, create_app
from tests.support.adapters import QUERY, TEXTS, THOUGHT, calibrated, small_embedder
from tests.support.commands import ok, refused, save
from tests.support.http_server import ThreadServer, Words, serving

ODD = "notes/../äö #1?.md%20"
LONG = "mirror " * 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadServer]:
    with Index(tmp_path_factory.mktemp("agents"), small_embedder()) as index:
        index.add([Document(id=name, text=text) for name, text in TEXTS.items()])
        index.add([Document(id=ODD, text=LONG)])
        with serving(create_app(small_embedder(), {"facts": index}, name="small")) as running:
            yield running


@asynccontextmanager
async def agent(server: ThreadServer) -> AsyncIterator[Client]:
    async with Client(f"{server.url}/mcp") as client:
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    answer: Any = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content
    return answer.structured_content


async def test_an_agent_finds_tools_that_say_what_they_do(server: ThreadServer) -> None:
    async with agent(server) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"search", "think", "explain", "index_status"}
    assert all(tool.description and tool.annotations.read_only_hint for tool in tools.values())
    assert "Your own reasoning" in json.dumps(tools["search"].input_schema)


async def test_a_search_thinks_or_takes_the_agents_reasoning(server: ThreadServer) -> None:
    async with agent(server) as client:
        found = await call(client, "search", query=QUERY, k=2)
        assert found["passages"][0]["text"] == TEXTS["vapour"]
        assert found["thoughts"] == [THOUGHT, THOUGHT]
        own = await call(client, "search", query="Why?", thoughts=["Yeast makes dough."], k=1, index="facts")
        assert own["passages"][0]["source"] == ""
        assert own["passages"][0]["uri"] == "passage://facts/bread"
        assert own["thoughts"] == ["Yeast makes dough."]
        assert (await call(client, "think", query=QUERY, n_thoughts=1))["result"] == [THOUGHT]
        why = await call(client, "explain", query=QUERY, k=2)
        assert "up" in why["verdict"] or "new" in why["verdict"]
        assert why["moves"][0]["uri"] == "passage://facts/vapour"
        with calibrated(server.service.retrievers["facts"].index):
            likely = await call(client, "search", query=QUERY, k=20, min_relevance=0.5)
            assert 0 < len(likely["passages"]) < len(TEXTS)
            assert all(each["probability"] >= 0.5 for each in likely["passages"])
        assert found["passages"][0]["probability"] is None


async def test_a_passage_that_was_cut_can_be_read_whole(server: ThreadServer) -> None:
    async with agent(server) as client:
        found = await call(client, "search", query="mirror", thinking="never", k=1)
        [passage] = found["passages"]
        assert passage["cut"]
        assert LONG.startswith(passage["text"])
        assert len(passage["text"]) == 2000
        read: Any = await client.read_resource(passage["uri"])
        assert read.contents[0].text == LONG
        [status] = (await call(client, "index_status"))["result"]
        assert (status["name"], status["documents"]) == ("facts", len(TEXTS) + 1)


async def test_what_is_wrong_is_told_in_words(server: ThreadServer) -> None:
    async with agent(server) as client:
        for arguments, says in (
            ({"query": " "}, "only whitespace"),
            ({"query": "a", "index": "laws"}, "expected one of 'facts'"),
            ({"query": "a", "where": {"$nor": []}}, "$nor"),
            ({"query": "a", "k": 500}, "less than or equal to 20"),
        ):
            answer: Any = await client.call_tool("search", arguments)
            assert answer.is_error
            assert says in answer.content[0].text
        for tool in ("search", "explain"):  # of many bad thoughts the first is named
            answer = await client.call_tool(tool, {"query": "a", "thoughts": [None] * 500})
            assert answer.is_error
            assert len(answer.content[0].text) < 1000
        with pytest.raises(Exception, match="no passage 'nothing'"):
            await client.read_resource("passage://facts/nothing")


async def test_a_question_may_not_be_longer_than_a_request(
    server: ThreadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service, "token_limit", Words())
    monkeypatch.setattr(server.service, "settings", ServerSettings(max_tokens=20))
    async with agent(server) as client:
        for tool in ("search", "explain", "think"):
            answer: Any = await client.call_tool(tool, {"query": "b " * 30})
            assert answer.is_error
            assert "Found 30 tokens; expected at most 20" in answer.content[0].text


def test_a_key_is_needed_here_too() -> None:
    keys = Keys({"alice": "a-key-of-some-length"})
    settings = ServerSettings(hosts=("*",))
    with serving(create_app(small_embedder(), keys=keys, settings=settings)) as server:
        assert httpx.post(f"{server.url}/mcp", json={}, trust_env=False).status_code == 401


class TestFrameworks:
    """Agents whose model is scripted: it searches with a thought of its own, and reads what it is told."""

    ARGUMENTS: ClassVar[dict[str, Any]] = {"query": "Why?", "thoughts": ["Yeast makes dough."], "k": 1}

    async def test_of_langchain(self, server: ThreadServer) -> None:
        """By the official client; LangChain's own adapter has an environment of its own (tests/packaging)."""
        agents = pytest.importorskip("langchain.agents", reason="type: pip install langchain")
        from langchain_core.language_models.chat_models import BaseChatModel
        from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
        from langchain_core.outputs import ChatGeneration, ChatResult
        from langchain_core.tools import StructuredTool

        class Scripted(BaseChatModel):
            @property
            def _llm_type(self) -> str:
                return "scripted"

            def bind_tools(self, tools: Any, **_: Any) -> Any:
                names.update(tool.name for tool in tools)
                return self

            def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
                called = {"name": "search", "args": TestFrameworks.ARGUMENTS, "id": "1"}
                if isinstance(messages[-1], ToolMessage):
                    said = AIMessage(json.loads(messages[-1].text)["passages"][0]["text"])
                else:
                    said = AIMessage("", tool_calls=[called])
                return ChatResult(generations=[ChatGeneration(message=said)])

        names: set[str] = set()
        async with agent(server) as client:

            def tool(described: Any) -> StructuredTool:
                async def called(**arguments: Any) -> str:
                    return json.dumps(await call(client, described.name, **arguments))

                return StructuredTool(
                    name=described.name,
                    description=described.description,
                    args_schema=described.input_schema,
                    coroutine=called,
                )

            tools = [tool(described) for described in (await client.list_tools()).tools]
            found = await agents.create_agent(Scripted(), tools).ainvoke({"messages": [("user", "Why?")]})
        assert names == {"search", "think", "explain", "index_status"}
        assert found["messages"][-1].text == TEXTS["bread"]

    async def test_of_llama_index(self, server: ThreadServer) -> None:
        tools = pytest.importorskip("llama_index.tools.mcp", reason="type: pip install llama-index-tools-mcp")
        from llama_index.core.base.llms import types

        if not hasattr(types, "ToolCallBlock"):
            pytest.skip("this llama-index-core has no model that calls tools to try them with")
        from llama_index.core.agent.workflow import FunctionAgent
        from llama_index.core.base.llms.types import ChatMessage, MessageRole, ToolCallBlock
        from llama_index.core.llms.mock import MockFunctionCallingLLM

        told: list[str] = []

        def scripted(messages: Any, **_: Any) -> ChatMessage:
            if messages[-1].role == MessageRole.TOOL:
                told.append(messages[-1].content)
                return ChatMessage(role="assistant", content="It is yeast.")
            asked = ToolCallBlock(tool_call_id="1", tool_name="search", tool_kwargs=self.ARGUMENTS)
            return ChatMessage(role="assistant", blocks=[asked])

        spec = tools.McpToolSpec(client=tools.BasicMCPClient(f"{server.url}/mcp"))
        found = await spec.to_tool_list_async()
        assert {tool.metadata.name for tool in found} == {"search", "think", "explain", "index_status"}
        model = MockFunctionCallingLLM(response_generator=scripted, is_chat_model=True)
        answer = await FunctionAgent(tools=found, llm=model).run("Why?")
        assert str(answer) == "It is yeast."
        assert TEXTS["bread"] in told[0]


class TestCommand:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        (tmp_path / "notes-index").mkdir()

    def test_entries_are_shown_for_every_program(self, tmp_path: Path) -> None:
        said = ok("mcp", "install", "--index", "notes-index", "-n", "1", "--model", "notes-index")
        assert said.count('"o1-retriever"') == 4
        assert said.count(str(tmp_path / "notes-index")) == 8
        assert said.count('"--n-thoughts"') == 4
        assert "Found no index" in refused("mcp")
        assert "without install" in refused("mcp", "--write", "cursor", "--index", "notes-index")

    def test_an_entry_is_written_beside_what_is_there(self, tmp_path: Path) -> None:
        file = tmp_path / ".vscode" / "mcp.json"
        file.parent.mkdir()
        file.write_text(json.dumps({"servers": {"other": {"command": "x"}}, "inputs": []}))
        ok("mcp", "install", "--write", "vscode", "--index", "mine=notes-index")
        settings = json.loads(file.read_text())
        assert settings["inputs"] == []
        assert settings["servers"]["other"] == {"command": "x"}
        entry = settings["servers"]["o1-retriever"]
        assert (entry["type"], entry["command"]) == ("stdio", sys.executable)
        assert entry["args"][-2:] == ["--index", f"mine={tmp_path / 'notes-index'}"]
        file.write_text("{")
        assert "nothing was written" in refused(
            "mcp", "install", "--write", "vscode", "--index", "notes-index"
        )
        assert file.read_text() == "{"

    @pytest.mark.long
    async def test_over_standard_input_and_output(self, tmp_path: Path) -> None:
        model = save(tmp_path / "tiny-model")
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "a.md").write_text("# Mirrors\n\nSteam meets cold glass.\n")
        ok("index", "notes", "--model", str(model))
        # The guard lets nothing pass that random weights have written.
        arguments = ["-m", "o1_retriever", "mcp", "--model", str(model), "-n", "1", "--no-guard"]
        parameters = StdioServerParameters(command=sys.executable, args=arguments, cwd=tmp_path)
        async with Client(stdio_client(parameters)) as client:
            found = await call(client, "search", query="Why do mirrors fog up?")
        assert "Steam meets cold glass." in found["passages"][0]["text"]
        assert found["passages"][0]["source"] == "a.md"
        assert len(found["thoughts"]) == 1
