"""Archives of strangers: one file is read out, in memory; links, bombs and damage are refused by name."""

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from inoculate.core import archives
from inoculate.core.archives import read_tar, read_zip
from inoculate.core.errors import InputError

OUTSIDE = ("../../escaped.txt", "/tmp/escaped.txt", "a/../../escaped.txt")


def make_zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def make_tar(*members: tuple[str, bytes | str], says: int | None = None) -> bytes:
    """Regular files (bytes) and symbolic links (text); with `says` the last header's size is made up."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        if says is not None:
            info = tarfile.TarInfo("bomb")
            info.size = says
            archive.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))  # pyright: ignore[reportOptionalMemberAccess]
    return gzip.compress(out.getvalue())


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside_are_names_and_nothing_is_written(tmp_path, monkeypatch, name):
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert read_zip(make_zip({name: b"x"}), name, "a.whl") == b"x"
    assert read_tar(make_tar((name, b"x")), name, "a.tar.gz") == b"x"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [] and not Path("/tmp/escaped.txt").exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../etc/passwd", "real.txt"])
def test_a_link_is_not_followed(target):
    data = make_tar(("real.txt", b"x"), ("linked.txt", target))
    with pytest.raises(InputError, match=r"a\.tar\.gz: member: the archive has no such file"):
        read_tar(data, "linked.txt", "a.tar.gz")


def test_what_says_that_it_is_enormous_is_not_read(monkeypatch):
    with pytest.raises(InputError, match="bomb: too large to be read out of an archive"):
        read_tar(make_tar(("a", b"x"), says=1 << 40), "bomb", "a.tar.gz")
    monkeypatch.setattr(archives, "_MOST_BYTES", 1000)
    with pytest.raises(InputError, match=r"a\.whl: zeros: too large"):
        read_zip(make_zip({"zeros": bytes(100_000)}), "zeros", "a.whl")
    with pytest.raises(InputError, match="too large"):  # what has to be inflated on the way counts
        read_tar(make_tar(("zeros", bytes(100_000)), ("wanted", b"x")), "wanted", "a.tar.gz")


def test_a_zip_that_lies_about_its_size_gives_no_more_than_it_says():
    data = bytearray(make_zip({"zeros": bytes(1 << 20)}))
    for header, field in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(header) + field
        data[at : at + 4] = (10).to_bytes(4, "little")
    with pytest.raises(InputError, match="not a readable zip archive: Bad CRC"):
        read_zip(bytes(data), "zeros", "a.whl")


@pytest.mark.parametrize("cut", [0, 10, -30])
def test_damaged_archives_are_named(cut):
    data = os.urandom(5000)
    with pytest.raises(InputError, match=r"a\.whl: not a readable zip archive"):
        read_zip(make_zip({"a": data})[:cut], "a", "a.whl")
    with pytest.raises(InputError, match=r"a\.tar\.gz: not a readable tar archive"):
        read_tar(make_tar(("a", data))[:cut], "b", "a.tar.gz")
