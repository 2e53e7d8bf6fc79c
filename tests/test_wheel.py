"""The wheel: it holds what the command reads at run time and nothing else, and works from where it is unpacked."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from inoculate.experiments.recipe import bundled

ROOT = Path(__file__).parent.parent
_LARGEST = 200_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_what_is_in_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        infos = {info.filename: info.file_size for info in archive.infolist()}
    sources = {
        file.relative_to(ROOT / "src").as_posix()
        for file in (ROOT / "src" / "inoculate").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    about = {name for name in infos if ".dist-info/" in name}
    assert set(infos) - about == sources
    assert {f"inoculate/recipes/{name}.yaml" for name in bundled()} <= set(infos)
    pages = {f"inoculate/reports/{name}" for name in ("template.html.j2", "compare.html.j2", "style.css", "page.js")}
    assert pages | {"inoculate/py.typed"} <= set(infos)
    assert {Path(name).name for name in about} == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE"}
    assert not [name for name in infos if "test" in Path(name).parts[0] or name.endswith((".pyc", ".safetensors"))]
    assert max(infos.values()) < _LARGEST and sum(infos.values()) < 20 * _LARGEST


def test_the_command_works_from_it(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    for arguments, said in (
        (["list", "recipes"], "quickstart"),
        (["run", "quickstart", "--dry-run"], "recipe quickstart"),
    ):
        code = f"import inoculate, sys; assert {str(tmp_path)!r} in inoculate.__file__; from inoculate.cli import main; main({arguments!r})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and said in done.stdout, done.stderr
