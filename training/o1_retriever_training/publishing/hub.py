"""Send a staged folder to the Hugging Face Hub: what is there already is not sent again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from o1_retriever.engine.checkpoint import first_line
from o1_retriever.errors import SettingsError
from o1_retriever_training.publishing.hub_errors import AGAIN, LOGIN, PublishError, explained, status_of
from o1_retriever_training.publishing.staging import Staged

_ATTEMPTS = 3
_PAUSE = 1.0  # seconds before the second attempt; twice that before the third
_OURS = (".gitattributes",)  # the Hub itself puts it into a new repository
_BLOCK = 1 << 20


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
class _Plan:
    parent: str
    private: bool
    send: tuple[str, ...]
    keep: tuple[str, ...]
    replace: tuple[str, ...]
    remove: tuple[str, ...]


def _silent(said: str) -> None:
    """Say nothing."""


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
    say: Callable[[str], None] = _silent,
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
    with explained(repo):
        plan = _plan(api, staged, repo)
        if plan is None:
            api.create_repo(repo, private=not public, exist_ok=True)
            plan = _plan(api, staged, repo)
    if plan is None:
        raise PublishError(f"The repository {repo} was made and cannot be found.", hint=AGAIN)
    _check_visibility(plan, repo, public)
    if (plan.replace or plan.remove) and not force:
        raise _occupied(repo, plan)
    commit = _send(api, staged, repo, plan, say=say) if plan.send or plan.remove else plan.parent
    if public and plan.private:
        with explained(repo):
            api.update_repo_settings(repo, private=False)
    return Published(
        repo=repo,
        url=f"{api.endpoint}/{repo}",
        commit=commit,
        private=plan.private and not public,
        sent=plan.send,
        kept=plan.keep,
        removed=plan.remove,
    )


def check_token(api: Any = None) -> None:
    """Raise `PublishError` where there is no token, or one that the Hub refuses."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = api or HfApi()
    _need_token(api)
    try:
        with explained("the Hub"):
            api.whoami()
    except HfHubHTTPError as error:
        # HF_TOKEN goes before what a login has stored, and the Hub's client says which of them it was.
        raise PublishError(f"The Hub refuses the token: {first_line(error)}.", hint=LOGIN) from error


def _need_token(api: Any) -> None:
    from huggingface_hub import get_token

    if isinstance(api.token, str) or (api.token is not False and get_token()):
        return
    raise PublishError("There is no token for the Hub here; publishing needs one that may write.", hint=LOGIN)


def _check_visibility(plan: _Plan, repo: str, public: bool) -> None:
    if not plan.private and not public:
        raise PublishError(
            f"{repo} is public, and what is sent there anybody can read at once.",
            hint="Type --public if that is meant, or another --repo.",
        )


def _occupied(repo: str, plan: _Plan) -> PublishError:
    others = [*plan.replace, *plan.remove]
    shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    return PublishError(
        f"{repo} has files other than these: {len(plan.replace)} would be replaced and {len(plan.remove)} "
        f"removed ({shown}). Nothing was sent.",
        hint="Type --force to have them replaced, or another --repo.",
    )


def _plan(api: Any, staged: Staged, repo: str) -> _Plan | None:
    """What differs between the staged folder and the repository; None where there is no repository."""
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        info = api.model_info(repo)
        tree = [
            each
            for each in api.list_repo_tree(repo, recursive=True, revision=info.sha)
            if isinstance(each, RepoFile)
        ]
    except RepositoryNotFoundError:
        return None
    remote = {each.path: (each.lfs.sha256 if each.lfs else each.blob_id) for each in tree}
    keep, send, replace = [], [], []
    for file in staged.files:
        if file.path not in remote:
            send.append(file.path)
        elif remote[file.path] in _hashes(staged.folder / file.path):
            keep.append(file.path)
        else:
            send.append(file.path)
            replace.append(file.path)
    ours = {file.path for file in staged.files}
    remove = [path for path in remote if path not in ours and path not in _OURS]
    return _Plan(
        parent=info.sha,
        private=bool(info.private),
        send=tuple(send),
        keep=tuple(keep),
        replace=tuple(replace),
        remove=tuple(sorted(remove)),
    )


def _hashes(path: Path) -> set[str]:
    """The names that the Hub may give a content: SHA-256 of a large file, git's hash of a small one."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
            git.update(block)
    return {sha256.hexdigest(), git.hexdigest()}


def _send(api: Any, staged: Staged, repo: str, plan: _Plan, *, say: Callable[[str], None]) -> str:
    """Commit the difference; look again and go on where a connection broke. Returns the commit."""
    removed = plan.remove
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with explained(repo):
                _commit(api, staged, repo, plan)
        except PublishError as error:
            if attempt == _ATTEMPTS or not _passing(error):
                raise
            say(f"{error.message} Trying again")
            time.sleep(_PAUSE * attempt)
        with explained(repo):
            now = _plan(api, staged, repo)
        if now is None:
            raise PublishError(f"{repo} is no longer there.", hint=AGAIN)
        if not now.send and not now.remove:
            return now.parent
        if set(now.remove) - set(removed) or set(now.replace) - set(plan.replace):
            raise _occupied(repo, now)
        plan = now
    raise PublishError(f"{repo} does not hold what was sent: {', '.join(plan.send[:5])}.", hint=AGAIN)


def _passing(error: PublishError) -> bool:
    # A refusal stays one; a server that stumbles or a connection that breaks may be better next time.
    response = getattr(error.__cause__, "response", None)
    return error.hint == AGAIN and (response is None or response.status_code >= 500)


def _commit(api: Any, staged: Staged, repo: str, plan: _Plan) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = [CommitOperationDelete(path) for path in plan.remove]
    operations += [CommitOperationAdd(path, str(staged.folder / path)) for path in plan.send]
    try:
        # One commit: whoever loads the model meanwhile gets the old one or the new one, never a mixture.
        api.create_commit(
            repo, operations, commit_message=f"Publish {len(staged.files)} files", parent_commit=plan.parent
        )
    except ValueError as error:
        # The one thing that the Hub reads before it takes anything.
        said = " ".join(str(error).split())
        raise PublishError(
            f"The Hub refuses the card's metadata: {said} Nothing was sent.",
            hint="Change what --license, --language, --dataset, --base-model or the folder's README.md say.",
        ) from error
    except RuntimeError as error:
        # The Hub's client wraps what broke while a large file was on its way.
        cause = error.__cause__ or error
        said = f"{first_line(error)}: {status_of(cause)}"
        raise PublishError(f"The upload to {repo} broke off ({said}).", hint=AGAIN) from cause
