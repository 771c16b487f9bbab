"""An agent of LangChain with the tools of a server; its model is scripted, all else is real."""

import asyncio
import json
import sys

from langchain.agents import create_agent
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_mcp_adapters.client import MultiServerMCPClient


class Scripted(BaseChatModel):
    """Searches with a thought of its own, and answers with the first passage."""

    @property
    def _llm_type(self):
        return "scripted"

    def bind_tools(self, tools, **options):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **options):
        if isinstance(messages[-1], ToolMessage):
            [part] = messages[-1].content
            message = AIMessage(json.loads(part["text"])["passages"][0]["text"])
        else:
            arguments = {"query": messages[-1].content, "thoughts": ["Yeast makes dough."], "k": 1}
            message = AIMessage("", tool_calls=[{"name": "search", "args": arguments, "id": "1"}])
        return ChatResult(generations=[ChatGeneration(message=message)])


async def main():
    client = MultiServerMCPClient({"o1-retriever": {"transport": "streamable_http", "url": sys.argv[1]}})
    tools = await client.get_tools()
    found = await create_agent(Scripted(), tools).ainvoke({"messages": [("user", "Why does it rise?")]})
    print(f"{' '.join(sorted(tool.name for tool in tools))}: {found['messages'][-1].content}")


asyncio.run(main())
