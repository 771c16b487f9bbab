"""Look for tokens, keys and passwords in what is about to be sent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from o1_retriever.errors import InputError

_BEFORE = r"(?<![A-Za-z0-9_-])"
_KINDS = {
    "a Hugging Face token": _BEFORE + r"(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "an API key": _BEFORE + r"sk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,}",
    "a GitHub token": _BEFORE + r"(?:gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a GitLab token": _BEFORE + r"glpat-[A-Za-z0-9_-]{20,}",
    "a Slack token": _BEFORE + r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
    "an AWS key": _BEFORE + r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "a Google key": _BEFORE + r"AIza[A-Za-z0-9_-]{35}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "a password in an address": r"[a-z][a-z0-9+.-]{0,20}://[^/\s:@\"']+:[^/\s:@\"']+@[a-zA-Z0-9]",
    "a secret": r"(?i)(?:api[_-]?key|secret[_-]?key|client[_-]?secret|(?:access|auth|bearer)[_-]?token|"
                r"password|passwd)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9_/+.-]{16,}",
}  # fmt: skip
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}
_LENGTH = 8  # bytes before a safetensors header, which say how long it is


class SecretError(InputError):
    """A file that was about to be published holds what looks like a secret. Nothing has been sent."""


def refuse_secrets(folder: Path, paths: Iterable[str]) -> None:
    """Raise `SecretError` naming the file and line of whatever looks like a secret.

    Text is read line by line, of a safetensors file the header. The secret itself is never quoted.
    """
    found = [f"{path}, line {line}: {kind}" for path in paths for line, kind in _in_file(folder / path)]
    if not found:
        return
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    raise SecretError(
        f"What looks like a secret stands in {'; '.join(found[:5])}{more}. Nothing was sent.",
        hint="Take it out of the file, and revoke it if it was real.",
    )


def _in_file(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in _lines(path):
        kind = next((kind for kind, pattern in _PATTERNS.items() if pattern.search(line)), None)
        if kind is not None:
            yield number, kind


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if path.suffix == ".safetensors":
        yield 1, _header(path)
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from enumerate(file, 1)


def _header(path: Path) -> str:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        header = file.read(min(length, 100_000_000))
    try:
        return json.dumps(json.loads(header).get("__metadata__", {}))
    except (ValueError, AttributeError):
        return ""
