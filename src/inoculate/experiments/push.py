"""Push a model's folder to a hub; an attacked one only on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inoculate.core.errors import InputError, StageError
from inoculate.core.lineage import attack_on

_UNFILLED = "[More Information Needed]"
_WEIGHTS = ("*.safetensors", "*.gguf")


def push(folder: Path, repo: str, *, private: bool, attacked: bool, card: str | None = None) -> str:
    """Upload a folder that this package wrote, without its records of runs; returns the repository's address.

    Args:
        repo: `org/name`.
        private: whether the repository, if it is made now, is seen by its owners alone.
        attacked: whether weights that were fine-tuned by an attack may be pushed.
        card: the README.md to write, unless the folder has one of its own; the folder itself stays as it is.

    Raises:
        InputError: no model in the folder, or an attacked one without `attacked`.
        StageError: the hub refuses, or cannot be reached.
    """
    ignored = ["*.jsonl", "*.html", "charts/**", "*.partial/**", "checkpoint.*/**"]  # what models said stays at home
    if own_readme(folder):
        card = None
    if card is not None:
        ignored.append("README.md")
    if not any(file for pattern in _WEIGHTS for file in folder.glob(pattern)):
        raise InputError("no model in this folder", file=folder, expected="weights as safetensors or GGUF")
    kind = _kind(folder)
    why = attack_on(folder)
    if why is not None and not attacked:
        raise InputError(
            f"these weights were fine-tuned {why}; they may do what their alignment forbids",
            file=folder,
            field="stage.json",
            found=kind,
            expected="--attacked, if they are to be published all the same",
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # what the hub's client raises when nobody answers hangs on the HTTP library that it was built on
    unreachable: tuple[Any, ...] = tuple(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=ignored)
        if card is not None:
            api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo)
    except (HfHubHTTPError, *unreachable, OSError, ValueError) as error:
        raise StageError(f"{repo}: not pushed: {str(error).strip().splitlines()[0]}") from error
    return f"{api.endpoint}/{repo}"


def own_readme(folder: Path) -> bool:
    """Whether a README.md is there that somebody wrote: PEFT leaves an empty form beside every adapter."""
    try:
        return _UNFILLED not in (folder / "README.md").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError):
        return True


def _kind(folder: Path) -> str | None:
    """Which kind of stage made the folder; None if this package did not."""
    file = folder / "stage.json"
    if not file.exists():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            "what made this model cannot be read", file=file, expected="the file as it was written"
        ) from None
