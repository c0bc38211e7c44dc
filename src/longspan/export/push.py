"""A published folder to the Hugging Face hub, by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from longspan.errors import LongspanError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def check_hub_name(name: str) -> str:
    """Return `name` if it has the form of a hub id, OWNER/NAME.

    Raises:
        LongspanError: it has not.
    """
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise LongspanError(f"{name!r} is not a hub id", where="the hub", remedy="use OWNER/NAME, as in me/my-embedder")
    return name


def push(folder: Path, name: str, *, private: bool = False, message: str, api: HfApi | None = None) -> str:
    """Upload a published folder in one commit; the repository is made if there is none.

    Files of an earlier upload that the folder no longer has are deleted, so that the repository is the folder.

    Args:
        name: OWNER/NAME.
        api: of the hub; None takes HF_ENDPOINT and the token that `hf auth login` or HF_TOKEN gives.

    Returns:
        the address of the commit.

    Raises:
        LongspanError: the name is no hub id, or the hub refused; says what it said.
    """
    from huggingface_hub import HfApi

    check_hub_name(name)
    api = api or HfApi()
    try:
        api.create_repo(name, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, repo_type="model", commit_message=message, delete_patterns="*"
        )
    except Exception as error:  # the hub client raises many kinds; each means "not uploaded"
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LongspanError(
            f"the hub did not take {name}: {first_line}",
            where=name,
            remedy=f"log in first (hf auth login) and check that you may write there; the folder is whole: {folder}",
        ) from None
    return str(commit.commit_url)
