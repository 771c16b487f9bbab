"""What the Hub answers when it does not do what was asked, in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from o1_retriever.engine.checkpoint import first_line
from o1_retriever.errors import O1RetrieverError

AGAIN = "Type the same command again: it goes on with what has not arrived yet."
LOGIN = "Type: hf auth login"


class PublishError(O1RetrieverError):
    """A model could not be published. What has arrived stays: the same command goes on with the rest."""


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """The Hub's errors as ours."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        hint = "Publish without HF_HUB_OFFLINE=1 in the environment, or look first with --dry-run."
        raise PublishError("The Hub was not asked: HF_HUB_OFFLINE is set.", hint=hint) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status == 401 and repo == "the Hub":
            raise
        raise _of_status(error, status, repo) from error
    except Exception as error:
        # The client's HTTP library goes by two names, depending on its version.
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            raise
        said = f"{type(error).__name__}: {first_line(error)}"
        raise PublishError(f"The connection to {repo} broke ({said}).", hint=AGAIN) from error


def _of_status(error: Exception, status: int, repo: str) -> PublishError:
    if status in (401, 403, 404):
        return PublishError(
            f"The token may not write to {repo} ({status_of(error)}).",
            hint=f"Check the name, and log in with a token that may write. {LOGIN}",
        )
    if status in (409, 412):
        return PublishError(
            f"Somebody else has changed {repo} meanwhile ({status_of(error)}); nothing was overwritten.",
            hint="Look at it, then type the same command again.",
        )
    return PublishError(f"The Hub could not take {repo} ({status_of(error)}).", hint=AGAIN)


def status_of(error: BaseException) -> str:
    """The status of an HTTP error and what the server said, else the kind of error."""
    response = getattr(error, "response", None)
    code = f"HTTP {response.status_code}" if response is not None else type(error).__name__
    said = getattr(error, "server_message", None)
    return f"{code}: {first_line(Exception(said))}" if said else code
