"""Local paths as people and recipes write them."""

from __future__ import annotations

from pathlib import Path

from inoculate.core.errors import InputError


def local_path(text: str, field: str) -> Path:
    """The path that a text stands for, `~` included; nothing needs to be there.

    Raises:
        InputError: for what no path can be, as a text with a NUL, a name that is too long or a home of nobody.
    """
    try:
        path = Path(text).expanduser()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"not a path that can be looked at: {why}", field=field, found=text) from None
    return path
