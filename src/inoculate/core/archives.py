"""One file out of an archive: nothing is unpacked, no link followed, and what says that it is enormous is not read."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib

from inoculate.core.errors import InputError

_MOST_BYTES = 1 << 30
"""Of one file read out of an archive; the largest asset's is a tenth of it."""


def read_zip(data: bytes, member: str, where: object) -> bytes:
    """The bytes of one file inside a zip archive that is held in memory.

    Raises:
        InputError: for a damaged archive, and a file that is not there or says that it is enormous.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if member not in names:
                raise _no_member(where, member, names)
            _check_size(archive.getinfo(member).file_size, member, where)
            return archive.read(member)  # never more than it says
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"not a readable zip archive: {error}", file=where) from None


def read_tar(data: bytes, member: str, where: object) -> bytes:
    """The bytes of one regular file inside a gzipped tar archive that is held in memory; a link is none.

    Raises:
        InputError: as `read_zip`; also where the files up to this one say that they are enormous.
    """
    names, seen = [], 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for info in archive:
                names.append(info.name)
                seen += info.size
                _check_size(seen, info.name, where)
                file = archive.extractfile(info) if info.name == member and info.isreg() else None
                if file is not None:
                    return file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise InputError(f"not a readable tar archive: {error}", file=where) from None
    raise _no_member(where, member, names)


def _check_size(size: int, member: str, where: object) -> None:
    if size > _MOST_BYTES:
        raise InputError(
            "too large to be read out of an archive", file=where, field=member, found=size, expected=f"≤ {_MOST_BYTES}"
        )


def _no_member(where: object, member: str, names: list[str]) -> InputError:
    return InputError("the archive has no such file", file=where, field="member", found=member, known=names)
