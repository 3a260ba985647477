"""Uploading an export to the Hugging Face hub: its files as they stand, in one commit, to a private repository."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
MARK = "export.json"
"""File that says that a repository holds an export, which may be replaced by another."""
SCAFFOLD = (".gitattributes", "README.md")
"""What a repository may hold that was made by hand and not filled yet."""


def check_repository(name: str) -> str:
    """Refuse what is no name of a repository.

    Raises:
        TspruneError: it is not OWNER/NAME, or has characters that the hub does not take.
    """
    owner, _, rest = name.partition("/")
    if not REPOSITORY.fullmatch(name) or ".." in name or "--" in name or rest.endswith((".git", ".", "-")):
        raise TspruneError(
            f"--push {name!r} is no repository; give OWNER/NAME, such as acme/load-forecaster: letters, digits, '-', "
            "'_' and '.', no '--' or '..'"
        )
    if len(owner) > 96 or len(rest) > 96:
        raise TspruneError(f"--push {name!r} is too long; owner and name have at most 96 characters each")
    return name


def push(directory: Path, repository: str, *, public: bool, say: Callable[[str], None]) -> str:
    """Upload an export; the token is that of `hf auth login` or of the environment variable HF_TOKEN.

    A repository that does not exist is created, private unless `public`. One that holds an earlier export is made
    equal to this one; the earlier one stays in its history. One that holds anything else is refused, and so is one
    whose visibility is not the one asked for.

    Args:
        directory: a finished export; every file of it is uploaded and nothing else.
        repository: OWNER/NAME.
        public: whether everybody may see it.
        say: told what a person should know.

    Returns:
        Where the model is on the hub.

    Raises:
        TspruneError: no token, no connection, no right to write, or the repository is not one to write to; the export
            stays as it is, and the message says how to go on.
    """
    from huggingface_hub import HfApi, constants, get_token

    def failed(reason: str, advice: str) -> TspruneError:
        again = shlex.join(["hf", "upload", repository, str(directory), ".", "--no-private" if public else "--private"])
        return TspruneError(
            f"--push {repository}: {reason}. The export itself is complete and kept in {directory}; {advice} and run: "
            f"{again}"
        )

    made = False
    try:
        if constants.HF_HUB_OFFLINE:
            raise failed("the hub is switched off by HF_HUB_OFFLINE=1", "unset it, with a connection,")
        if not get_token():
            raise failed("there is no token for the hub", "log in by `hf auth login`, or set HF_TOKEN,")
        api = HfApi()
        held = _held(api, repository, public)
        if held is None:
            api.create_repo(repository, repo_type="model", private=not public)
            made = True
        elif held:
            what = f"the earlier export in {repository}" if MARK in held else f"{', '.join(held)} in {repository}"
            say(f"note: {what} is replaced and stays in the history of the repository")
        api.upload_folder(
            repo_id=repository,
            repo_type="model",
            folder_path=directory,
            commit_message="Export by tsprune",
            delete_patterns="*" if held else None,
        )
    except TspruneError:
        raise
    except Exception as error:  # The hub raises many unrelated classes: network, access, names, disk.
        first = next((line for line in str(error).splitlines() if line.strip()), "").strip().rstrip(".")
        empty = f" ({repository} was created and is empty)" if made else ""
        raise failed(
            f"the hub answered {type(error).__name__}: {first}{empty}",
            f"check the connection, and that the token may write to {repository.split('/')[0]},",
        ) from error
    return f"{constants.ENDPOINT}/{repository}"


def _held(api: HfApi, repository: str, public: bool) -> list[str] | None:
    """Files in a repository, None where there is no such repository.

    Raises:
        TspruneError: it must not be written to.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.model_info(repository)
    except RepositoryNotFoundError:
        return None
    if bool(found.private) == public:
        now, asked = ("private", "without --public") if found.private else ("public", "with --public")
        raise TspruneError(
            f"--push {repository}: that repository exists and is {now}; nothing was uploaded. Push {asked}, or change "
            "the repository's visibility on the hub, or choose another name"
        )
    files = [file.rfilename for file in found.siblings or ()]
    if MARK not in files and (foreign := sorted(set(files) - set(SCAFFOLD))):
        raise TspruneError(
            f"--push {repository}: that repository holds {', '.join(foreign[:5])} and no {MARK}, so it is no earlier "
            "export and is not replaced; nothing was uploaded. Choose another name"
        )
    return [name for name in files if name != ".gitattributes"]
