"""Send a staged folder to the Hugging Face Hub: what is there already is not sent again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from o1_retriever.engine.checkpoint import first_line
from o1_retriever.errors import O1RetrieverError, SettingsError
from o1_retriever.reporting import counted
from o1_retriever_training.publishing.staging import Staged

_ATTEMPTS = 3
_PAUSE = 1.0  # seconds before the second attempt; twice that before the third
_OURS = (".gitattributes",)  # the Hub itself puts it into a new repository
_AGAIN = "Type the same command again: it goes on with what has not arrived yet."
_LOGIN = "Type: hf auth login"
_HUB = "the Hub"


class PublishError(O1RetrieverError):
    """A model could not be published. What has arrived stays: the same command goes on with the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What has become of a folder on the Hub.

    `sent` and `kept` are the paths that were sent and that were there already, `removed` those that `force`
    has taken away. `commit` is the repository's revision now.
    """

    repo: str
    url: str
    commit: str
    private: bool
    sent: tuple[str, ...]
    kept: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Difference:
    """What a commit on top of `parent` has to change; `others` are files of the Hub that it would lose.

    These are the ones to `remove`, and those to `send` of which another version is there.
    """

    parent: str
    private: bool
    send: tuple[str, ...]
    remove: tuple[str, ...]
    others: tuple[str, ...]


def check_name(repo: str) -> None:
    """Raise `SettingsError` for what cannot be a repository's name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
        right = repo.count("/") == 1
    except HFValidationError:
        right = False
    if not right:
        raise SettingsError(f"--repo is {repo!r}; expected user/name, as on the Hub.")


def publish(
    staged: Staged,
    repo: str,
    *,
    public: bool = False,
    force: bool = False,
    api: Any = None,
    say: Callable[[str], None] = lambda text: None,
) -> Published:
    """Make the repository hold exactly the staged files, in one commit.

    It is made if it is not there, private unless `public`. One with other files is left alone without
    `force`, which replaces what differs and removes what is not staged. `api` is a `huggingface_hub.HfApi`
    (None: with the token of the environment or of `hf auth login`). Raises `PublishError`, and
    `SettingsError` for a wrong name.
    """
    from huggingface_hub import HfApi

    check_name(repo)
    api = api or HfApi()
    _need_token(api)
    with _explained(repo):
        api.create_repo(repo, private=not public, exist_ok=True)
    found = _compare(api, staged, repo)
    if not found.private and not public:
        raise PublishError(
            f"{repo} is public, and what is sent there anybody can read at once.",
            hint="Type --public if that is meant, or another --repo.",
        )
    if found.others and not force:
        raise _occupied(repo, found)
    commit = _send(api, staged, repo, found, say=say) if found.send or found.remove else found.parent
    if public and found.private:
        with _explained(repo):
            api.update_repo_settings(repo, private=False)
    return Published(
        repo=repo,
        url=f"{api.endpoint}/{repo}",
        commit=commit,
        private=found.private and not public,
        sent=found.send,
        kept=tuple(file.path for file in staged.files if file.path not in found.send),
        removed=found.remove,
    )


def check_token() -> None:
    """Raise `PublishError` where there is no token, or one that the Hub refuses."""
    from huggingface_hub import HfApi

    _need_token(HfApi())
    with _explained(_HUB):
        HfApi().whoami()


def _need_token(api: Any) -> None:
    from huggingface_hub import get_token

    if not isinstance(api.token, str) and (api.token is False or not get_token()):
        raise PublishError(
            "There is no token for the Hub here; publishing needs one that may write.", hint=_LOGIN
        )


def _occupied(repo: str, found: _Difference) -> PublishError:
    shown = ", ".join(found.others[:5])
    more = f" and {len(found.others) - 5} more" if len(found.others) > 5 else ""
    replaced = len(found.others) - len(found.remove)
    return PublishError(
        f"{repo} has files other than these: {replaced} would be replaced and {len(found.remove)} removed "
        f"({shown}{more}). Nothing was sent.",
        hint="Type --force to have them replaced, or another --repo.",
    )


def _compare(api: Any, staged: Staged, repo: str) -> _Difference:
    """What differs between the staged folder and the repository, by the hashes that the Hub has."""
    from huggingface_hub.hf_api import RepoFile

    with _explained(repo):
        info = api.model_info(repo)
        tree = list(api.list_repo_tree(repo, recursive=True, revision=info.sha))
    remote = {each.path: each for each in tree if isinstance(each, RepoFile)}
    ours = [file.path for file in staged.files]
    send = [path for path in ours if path not in remote or not _same(staged.folder / path, remote[path])]
    remove = sorted(remote.keys() - {*ours, *_OURS})
    return _Difference(
        parent=info.sha,
        private=bool(info.private),
        send=tuple(send),
        remove=tuple(remove),
        others=(*(path for path in send if path in remote), *remove),
    )


def _same(path: Path, remote: Any) -> bool:
    """Whether a file is the one of the Hub, which names a large one by its SHA-256 and others as git does."""
    from huggingface_hub.utils.sha import git_hash, sha_fileobj

    if path.stat().st_size != remote.size:
        return False
    with path.open("rb") as file:
        if remote.lfs is not None:
            return bool(sha_fileobj(file).hex() == remote.lfs.sha256)
        return bool(git_hash(file.read()) == remote.blob_id)


def _send(api: Any, staged: Staged, repo: str, found: _Difference, *, say: Callable[[str], None]) -> str:
    """Commit the difference; look again and go on where a connection broke. Returns the commit."""
    allowed = set(found.others)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _commit(api, staged, repo, found)
        except PublishError as error:
            # A refusal stays one; a server that stumbles or a connection that breaks may be better next time.
            response = getattr(error.__cause__, "response", None)
            passing = error.hint == _AGAIN and (response is None or response.status_code >= 500)
            if attempt == _ATTEMPTS or not passing:
                raise
            say(f"{error.message} Trying again")
            time.sleep(_PAUSE * attempt)
        found = _compare(api, staged, repo)
        if not found.send and not found.remove:
            return found.parent
        if not allowed.issuperset(found.others):
            raise _occupied(repo, found)
    raise PublishError(f"{repo} does not hold what was sent: {', '.join(found.send[:5])}.", hint=_AGAIN)


def _commit(api: Any, staged: Staged, repo: str, found: _Difference) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = [CommitOperationDelete(path) for path in found.remove]
    operations += [CommitOperationAdd(path, str(staged.folder / path)) for path in found.send]
    message = f"Publish {counted(len(staged.files), 'file')}"
    try:
        # One commit: whoever loads the model meanwhile gets the old one or the new one, never a mixture.
        # `upload_folder` would make a commit every few minutes where large files go to Xet.
        with _explained(repo):
            api.create_commit(repo, operations, commit_message=message, parent_commit=found.parent)
    except ValueError as error:
        # The one thing that the Hub reads before it takes anything.
        reason = " ".join(str(error).split())
        raise PublishError(
            f"The Hub refuses the card's metadata: {reason} Nothing was sent.",
            hint="Change what --license, --language, --dataset, --base-model or the folder's README.md say.",
        ) from error
    except RuntimeError as error:
        # The Hub's client wraps what broke while a large file was on its way.
        cause = error.__cause__ or error
        reason = f"{first_line(error)}: {_status_of(cause)}"
        raise PublishError(f"The upload to {repo} broke off ({reason}).", hint=_AGAIN) from cause


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """The Hub's errors as ours."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        hint = "Publish without HF_HUB_OFFLINE=1 in the environment, or look first with --dry-run."
        raise PublishError("The Hub was not asked: HF_HUB_OFFLINE is set.", hint=hint) from error
    except HfHubHTTPError as error:
        raise _of_status(error, repo) from error
    except Exception as error:
        # The client's HTTP library goes by two names, depending on its version.
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise PublishError(f"The connection to {repo} broke ({reason}).", hint=_AGAIN) from error


def _of_status(error: Any, repo: str) -> PublishError:
    status = error.response.status_code if error.response is not None else 0
    if status == 401 and repo == _HUB:
        # HF_TOKEN goes before what a login has stored, and the Hub's client says which of them it was.
        return PublishError(f"The Hub refuses the token: {first_line(error)}.", hint=_LOGIN)
    if status in (401, 403, 404):
        return PublishError(
            f"The token may not write to {repo} ({_status_of(error)}).",
            hint=f"Check the name, and log in with a token that may write. {_LOGIN}",
        )
    if status in (409, 412):
        return PublishError(
            f"Somebody else has changed {repo} meanwhile ({_status_of(error)}); nothing was overwritten.",
            hint="Look at it, then type the same command again.",
        )
    return PublishError(f"The Hub could not take {repo} ({_status_of(error)}).", hint=_AGAIN)


def _status_of(error: BaseException) -> str:
    """The status of an HTTP error and what the server said, else the kind of error."""
    response = getattr(error, "response", None)
    code = f"HTTP {response.status_code}" if response is not None else type(error).__name__
    reason = getattr(error, "server_message", None)
    return f"{code}: {first_line(Exception(reason))}" if reason else code
