"""Upload of a finished atlas to the Hugging Face hub, with the user's own token.

After the folder is written. Whether it may be uploaded is asked before anything else is done: identification takes hours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from lape_ds.errors import UserError, first_line

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
ATLAS_MARKER = "languages.json"  # what no other folder or repository has
_LOG_IN = "log in with a token that may write (`hf auth login`, or set HF_TOKEN)"


def check_push(repository: str, *, private: bool) -> None:
    """Makes sure, without writing anything, that the logged-in user may write to a repository of this name.

    Args:
        repository: `USER/NAME` or `ORGANISATION/NAME`; need not be there yet.
        private: Whether it is to be private.

    Raises:
        UserError: No such name, offline, not logged in, a token that only reads, another's namespace, a repository that holds
            something else than an atlas, or a public one that was to be private.
    """
    from huggingface_hub import HfApi, constants, get_token

    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"--push {repository}: not the name of a repository; allowed: USER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"--push {repository}: HF_HUB_OFFLINE is set; unset it where there is a network, or leave --push out and push later "
            "with the same command"
        )
    if get_token() is None:
        raise UserError(f"--push {repository}: not logged in to the hub; {_LOG_IN}")
    with _explained(repository):
        account = HfApi().whoami()
    namespace = repository.split("/")[0]
    names = [account["name"], *(one["name"] for one in account.get("orgs", []))]
    if namespace.lower() not in [name.lower() for name in names]:
        allowed = ", ".join(f"{name}/…" for name in names)
        raise UserError(
            f"--push {repository}: {account['name']} has no rights in {namespace}; allowed: {allowed}"
        )
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(f"--push {repository}: the token of {account['name']} only reads; {_LOG_IN}")
    _check_repository(repository, private=private)


def _check_repository(repository: str, *, private: bool) -> None:
    """That what is there may be written over, if anything is."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with _explained(repository):
        try:
            there = HfApi().model_info(repository)
        except RepositoryNotFoundError:  # it will be made
            return
    files = {one.rfilename for one in there.siblings or []} - {".gitattributes"}
    if files and ATLAS_MARKER not in files:
        raise UserError(
            f"--push {repository}: the repository holds something else than an atlas (no {ATLAS_MARKER}) and is left as it is; "
            "name another one, or an empty one"
        )
    if private and not there.private:
        raise UserError(
            f"--push {repository}: --private, and the repository is public; make it private on its page, or name another one"
        )


def push_atlas(folder: Path, repository: str, *, private: bool) -> str:
    """Makes the repository if it is not there and uploads the folder; what is there and unchanged is not sent again.

    `check_push` has been asked before.

    Args:
        folder: A finished atlas.
        repository: `USER/NAME`, a model repository.
        private: Of a new repository; one that is there stays as it is.

    Returns:
        The address of the page.

    Raises:
        UserError: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _explained(repository):
        api.create_repo(repository, repo_type="model", private=private or None, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type="model",
            commit_message="Upload the atlas",
            # Of languages that an earlier atlas had; counts that were left out now stay as they were published.
            delete_patterns=["counts/*"] if (folder / "counts").is_dir() else None,
        )
    return f"{api.endpoint}/{repository}"


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turns what the hub's client raises into one line that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    # The hub's own bases name the transport's error, whichever HTTP library it uses (requests, httpx).
    transport = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    try:
        yield
    except (OSError, ValueError, RuntimeError, *transport) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        todo = {401: _LOG_IN, 403: f"the token needs the right to write there; {_LOG_IN}"}.get(
            status or 0,
            "check the network and https://status.huggingface.co, then give the same command again",
        )
        raise UserError(f"--push {repository}: the hub refused ({first_line(error)}); {todo}") from error
