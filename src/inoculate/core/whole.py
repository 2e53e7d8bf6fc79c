"""Files that are whole or not there, and folders that are as whole as they were left: `stage.json` lists sizes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inoculate.core.errors import InputError

_KEPT = (".safetensors", ".jsonl", ".json")
_ADVICE = "delete the folder, and what made it runs again"


def write_whole(path: Path, content: bytes) -> None:
    """Write so that a reader sees the old file or the new one, never half of one, and a failure leaves nothing.

    Raises:
        OSError: no room, or no right.
    """
    fresh = ""
    try:
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(fresh).chmod(0o644)
        Path(fresh).replace(path)
    except BaseException as error:
        if fresh:
            Path(fresh).unlink(missing_ok=True)
        if isinstance(error, OSError):  # of the file that was asked for, and not of the one beside it
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def sizes(folder: Path) -> dict[str, int]:
    """File → bytes, of weights, rows and settings; a reader may lay other files beside them."""
    files = [file for file in folder.rglob("*") if file.suffix in _KEPT and file.is_file()]
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in sorted(files) if file.name[0] != "."}


def read_about(folder: Path) -> dict[str, Any]:
    """What `stage.json` says.

    Raises:
        InputError: if it is torn, or lacks what every stage writes.
    """
    file = folder / "stage.json"
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}; {_ADVICE}", file=file) from None
    if not isinstance(about, dict):
        raise InputError(f"not a JSON object; {_ADVICE}", file=file, found=about)
    for field in ("kind", "hash", "status"):
        if not isinstance(about.get(field), str):
            raise InputError(f"not what a stage writes; {_ADVICE}", file=file, field=field, found=about.get(field))
    return about


def check_files(folder: Path, about: Mapping[str, Any], only: str = "") -> None:
    """Compare what is there with what was; a folder of before sizes were kept has none.

    Args:
        only: files with this suffix.

    Raises:
        InputError: for the first file that is missing or was cut off.
    """
    kept = about.get("files")
    for name, size in kept.items() if isinstance(kept, dict) else ():
        if not name.endswith(only) or not isinstance(size, int):
            continue
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found is None or found < size:
            problem = "is missing" if found is None else "is cut off"
            raise InputError(f"{problem}; {_ADVICE}", file=file, found=found, expected=f"{size:,} bytes")
