"""Who may call: keys, host names, and what browsers are told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from o1_retriever.errors import SettingsError
from o1_retriever_server.problems import answer

VARIABLE = "O1_RETRIEVER_API_KEYS"
# Shorter ones can be guessed.
SHORTEST = 16
# What says nothing about anybody's documents or queries.
OPEN = {"/", "/docs", "/health", "/ready", "/openapi.json"}
_OPEN_FOLDER = "/page/"

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Keys:
    """The keys that a server knows, each with a name that goes into the log; the keys themselves are hashed.

    `Keys.read` takes them from a file or from the environment. Raises `SettingsError` for a key that is too
    short or not ASCII, and for a name or a key that is there twice.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        for name, key in keys.items():
            if len(key) < SHORTEST:
                raise SettingsError(
                    f"The key named {name!r:.60} has {len(key)} characters; expected at least {SHORTEST}.",
                    hint="Type: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
                )
            if not key.isascii():  # as which a header is read differs between clients
                raise SettingsError(
                    f"The key named {name!r:.60} has characters that are not ASCII; expected none."
                )
        self._names = {_digest(key): name for name, key in keys.items()}
        if len(self._names) < len(keys):
            raise SettingsError("Found the same key under two names; expected one for each.")

    def __bool__(self) -> bool:
        return bool(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Keys({sorted(self._names.values())})"

    @classmethod
    def read(cls, file: str | os.PathLike[str] | None = None) -> Keys:
        """The keys of a file, one `NAME KEY` a line, and of $O1_RETRIEVER_API_KEYS (`name=key,name=key`).

        A line or an entry without a name is a key alone, and so is base64 that ends in =. Lines that begin
        with # are comments.
        """
        lines = [] if file is None else _lines(Path(file))
        entries = [entry.strip() for entry in os.environ.get(VARIABLE, "").split(",")]
        pairs = [_pair(line, None, place) for place, line in enumerate(lines, 1)]
        pairs += [_pair(entry, "=", place) for place, entry in enumerate(filter(None, entries), 1)]
        keys: dict[str, str] = {}
        for name, key in pairs:
            if name in keys:
                raise SettingsError(
                    f"Found two keys named {name!r:.60}; expected a name of its own for each."
                )
            keys[name] = key
        return cls(keys)

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None for an unknown one. All are compared, each in constant time."""
        given, found = _digest(key), None
        for digest, name in self._names.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found


def _lines(file: Path) -> list[str]:
    try:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The file of keys {file} cannot be read: {error}.") from None
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise SettingsError(f"The file {file} holds no key; expected one a line, like: NAME KEY")
    return found


def _pair(text: str, between: str | None, place: int) -> tuple[str, str]:
    name, *rest = text.split(between, 1)
    if not rest or _padded(text):
        return f"key-{place}", text
    key = rest[0].strip()
    if not key.strip("="):  # what stands before it may be a key, and is not shown
        raise SettingsError(f"Entry {place} of the keys has a name and no key; expected both.")
    return name.strip(), key


def _padded(text: str) -> bool:
    """Whether it is base64 of enough bytes, whose = is no sign between a name and a key."""
    with suppress(ValueError):
        plain = text.replace("-", "+").replace("_", "/").encode()
        raw = base64.b64decode(plain, validate=True)
        return plain.endswith(b"=") and len(raw) >= SHORTEST and base64.b64encode(raw) == plain
    return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def secure(headers: MutableHeaders) -> None:
    """Add what browsers heed to the headers of an answer."""
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Cache-Control", "no-store")


class Hosts:
    """Middleware that answers to names of this server alone; `*` among them is every name."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, list(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with 400."""
        ours = False

        async def known(*_: Any) -> None:
            nonlocal ours
            ours = True

        async def unsent(_: Message) -> None:
            """Take the refusal in the words of the framework, which is no JSON."""

        check = TrustedHostMiddleware(known, allowed_hosts=self._names, www_redirect=False)
        await check(scope, receive, unsent)
        if ours:
            await self._app(scope, receive, send)
        else:
            refusal = answer(400, "The header Host names another server than this one.", param="Host")
            await refusal(scope, receive, send)


class Access:
    """Middleware that asks for a key where one is needed."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with 401."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        if self._refuses(scope):
            refusal = answer(
                401,
                "The request has no key that this server knows; expected a header Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refuses(self, scope: Scope) -> bool:
        """Whether a key is needed and missing; the name of a known one is kept for the log."""
        if not self._keys:
            return False
        name = self._keys.name_of(_given(Headers(scope=scope)))
        scope["o1_retriever.key"] = name
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        # A browser asks without a key whether it may ask with one.
        free = path in OPEN or path.startswith(_OPEN_FOLDER) or scope["method"] == "OPTIONS"
        return name is None and not free


def _given(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
