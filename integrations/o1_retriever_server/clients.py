"""What to write into the settings of programs that run agents, so that they find our tools."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from o1_retriever.cli.terminal import messages, output
from o1_retriever.errors import SettingsError
from o1_retriever.storage import written_whole

_NAME = "o1-retriever"


@dataclass(frozen=True, kw_only=True)
class Client:
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


def clients() -> dict[str, Client]:
    """The programs that are known, by the name for `--write`."""
    home = Path.home()
    folders = {"darwin": home / "Library" / "Application Support", "win32": home / "AppData" / "Roaming"}
    desktop = folders.get(sys.platform, home / ".config") / "Claude"
    return {
        "claude-desktop": Client(title="Claude Desktop", file=desktop / "claude_desktop_config.json"),
        "claude-code": Client(title="Claude Code, in this folder", file=Path(".mcp.json")),
        "cursor": Client(title="Cursor", file=home / ".cursor" / "mcp.json"),
        "vscode": Client(title="VS Code, in this folder", file=Path(".vscode") / "mcp.json", key="servers"),
    }


def install(name: str | None, folders: Mapping[str, Path], options: Sequence[str]) -> None:
    """Show what each program needs in its settings, or write it into those of one."""
    indexes = [part for each, path in folders.items() for part in ("--index", f"{each}={path.resolve()}")]
    # A program is started with another search path and in another folder.
    placed = [str(Path(each).resolve()) if Path(each).exists() else each for each in options]
    command = [sys.executable, "-m", "o1_retriever", "mcp", *indexes, *placed]
    if name is not None:
        client = clients()[name]
        client.write(command)
        messages().print(
            f"Written into {client.file}. Start {client.title} again.", soft_wrap=True, markup=False
        )
        return
    for client in clients().values():
        output().print(f"{client.title}: {client.file}", soft_wrap=True, markup=False)
        output().print(json.dumps(client.entry(command), indent=2), soft_wrap=True, markup=False)
