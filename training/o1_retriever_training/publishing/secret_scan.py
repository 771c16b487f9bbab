"""Look for tokens, keys and passwords in what is about to be sent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

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


class SecretError(InputError):
    """A file that was about to be published holds what looks like a secret. Nothing has been sent."""


def refuse_secrets(folder: Path, paths: Iterable[str]) -> None:
    """Raise `SecretError` naming the file and line of whatever looks like a secret.

    Text is read line by line, of a safetensors file the metadata. The secret itself is never quoted.
    """
    found = []
    for path in paths:
        for number, line in _lines(folder / path):
            kind = next((kind for kind, pattern in _PATTERNS.items() if pattern.search(line)), None)
            if kind is not None:
                found.append(f"{path}, line {number}: {kind}")
    if not found:
        return
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    raise SecretError(
        f"What looks like a secret stands in {'; '.join(found[:5])}{more}. Nothing was sent.",
        hint="Take it out of the file, and revoke it if it was real.",
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if path.suffix == ".safetensors":
        with suppress(SafetensorError), safe_open(path, "numpy") as weights:
            yield 1, json.dumps(weights.metadata() or {})
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from enumerate(file, 1)
