"""What a client is told when something is wrong: one JSON shape, that of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from o1_retriever.errors import (
    IndexNotFoundError,
    InputError,
    MissingExtraError,
    O1RetrieverError,
    SettingsError,
)

# By status: what the client's library makes an exception of, and a code for programs.
_NAMES = {
    400: ("invalid_request_error", "invalid_request"),
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    413: ("invalid_request_error", "too_large"),
    422: ("invalid_request_error", "invalid_request"),
    429: ("rate_limit_error", "too_many_requests"),
    501: ("server_error", "not_installed"),
    503: ("server_error", "not_ready"),
    504: ("server_error", "deadline_exceeded"),
}


class Problem(BaseModel):
    """What was found, what was expected, and what to do."""

    message: str
    type: str
    code: str
    param: str | None = None


class ProblemAnswer(BaseModel):
    """The body of every answer that is no success."""

    error: Problem


# For the OpenAPI page: what every route may answer besides.
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemAnswer, "description": text}
    for status, text in {
        400: "The request cannot be used; the message says why.",
        401: "No key that the server knows.",
        404: "No such model or index.",
        413: "More than the server accepts.",
        422: "The body has not the expected shape.",
        429: "Too many requests are waiting; come back after `Retry-After` seconds.",
        500: "The server failed; its log has the request's id.",
        504: "The request's time was up.",
    }.items()
}


def body_of(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an answer that is no success. What of the message is no Unicode becomes question marks."""
    message = message.encode("utf-8", "replace").decode("utf-8")
    kind, code = _NAMES.get(status, ("server_error", "internal_error"))
    return ProblemAnswer(error=Problem(message=message, type=kind, code=code, param=param)).model_dump()


def answer(
    status: int, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An answer that is no success."""
    return JSONResponse(body_of(status, message, param), status, headers)


def add_handlers(app: FastAPI) -> None:
    """Have the application answer in this shape, whoever raises what."""

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        message, allowed = str(error.detail), (error.headers or {}).get("Allow")
        if error.status_code == 405 and allowed:
            message = f"Found {request.method}; expected {allowed}."
        return answer(error.status_code, message, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        more = len(error.errors()) - 1
        others = f" (and {more} more)" if more else ""
        return answer(422, f"{place}: {_said(first, request)}{others}", param=place)

    @app.exception_handler(O1RetrieverError)
    async def _ours(_: Request, error: O1RetrieverError) -> JSONResponse:
        status = _status(error)
        if status >= 500 and not isinstance(error, MissingExtraError):
            raise error  # what is logged, and answered without what the message says
        place = getattr(error, "position", None)
        return answer(status, str(error), param=None if place is None else str(place))


def _said(first: Mapping[str, Any], request: Request) -> str:
    """What is wrong with a field, or with the whole body, which an unknown type leaves unread."""
    said, given = f"{first['msg']}.", request.headers.get("content-type", "no Content-Type")
    if first["loc"] == ("body",) and "json" not in given:
        return f"Found {given:.100}; expected JSON, with the header Content-Type: application/json."
    if first["type"] == "json_invalid":
        return f"{said} {first.get('ctx', {}).get('error', '')}.".replace("..", ".")
    return f"{said} The page /docs has all fields." if first["type"] == "extra_forbidden" else said


def _status(error: O1RetrieverError) -> int:
    if isinstance(error, InputError | SettingsError):
        return 400
    if isinstance(error, IndexNotFoundError):
        return 404
    return 501 if isinstance(error, MissingExtraError) else 500
