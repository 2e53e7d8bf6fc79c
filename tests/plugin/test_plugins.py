"""Plug-ins by entry points: packages in a folder of their own, seen by the command in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.experiments import tiny

from inoculate.core.errors import PlugInWarning
from inoculate.core.plugins import Table, fault_of_value

EXAMPLE = Path(__file__).parent / "example"
GOOD = {
    "inoculate.defenses": {"halved": "acme:Halved"},
    "inoculate.judges": {"shouting": "acme:Shouting"},
    "inoculate.tasks": {"echo": "acme:Echo"},
    "inoculate.sources": {"brews": "acme:brews"},
    "inoculate.attacks": {"twice": "acme:Twice"},
}
BAD = {
    "inoculate.defenses": {
        "booster": "acme_more:Unnamed",
        "gone": "acme_gone:Gone",
        "halved": "acme_more:Late",
        "idle": "acme_more:Idle",
        "other": "acme_more:Unnamed",
        "plain": "acme_more:__doc__",
    },
    "inoculate.sources": {"brews": "acme_more:Idle", "empty": "acme_more:Idle"},
}
SCRIPT = """
import contextlib, io, json, sys
import inoculate.cli as cli
assert not {"torch", "transformers", "pydantic", "acme", "acme_more"} & set(sys.modules)
for line in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(line)
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def install(target: Path, name: str, version: str, groups: dict[str, dict[str, str]], module: str) -> None:
    """What `pip install --target` leaves: the module, and metadata with the entry points."""
    shutil.copy(EXAMPLE / module, target)
    about = target / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = "\n".join(
        f"[{group}]\n" + "\n".join(f"{key} = {value}" for key, value in entries.items())
        for group, entries in groups.items()
    )
    (about / "entry_points.txt").write_text(points + "\n")


def commands(target: Path, folder: Path, *lines: list[str]) -> list[tuple[int, str, str]]:
    """Run the command some times in one fresh process that sees the packages in `target`."""
    path = os.pathsep.join([str(target), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(lines),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": ""},  # an earlier test's command leaves its own there
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return [tuple(json.loads(line)) for line in found.stdout.splitlines() if line.startswith("[")]


@pytest.fixture
def target(tmp_path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder, "acme", "1.2", GOOD, "acme.py")
    return folder


def recipe(folder: Path, file: str, **changes: object) -> Path:
    """The tiny recipe with something of the plug-in in every place that takes it."""
    part = {"source": "brews", "split": "heldout", "num_samples": 5}
    given = {
        "evaluate.judges": [{"name": "refusal"}, {"name": "shouting", "mark": "."}],
        "evaluate.task": part,
        "attack": {
            "name": "twice",
            "task": {"source": "sandbox-sentiment", "split": "attack"},
            "harmful": {"source": "brews", "split": "attack"},
            "num_samples": 20,
            "training": {"max_steps": 2, "per_device_train_batch_size": 4},
        },
        "matrix": {"align.defense": [{"name": "halved", "alpha": 0.1}]},
        **changes,
    }
    return tiny.write(folder, given, file)


def test_every_group_end_to_end(target, tmp_path):
    """Listed with their package; a recipe that uses all five runs, and its records and hash tell of them."""
    good = recipe(tmp_path, "good.yaml")
    wrong = recipe(tmp_path, "wrong.yaml", matrix={"align.defense": [{"name": "halvd"}]})
    field = recipe(tmp_path, "field.yaml", matrix={"align.defense": [{"name": "halved", "lamb": 1}]})
    task = recipe(tmp_path, "task.yaml", **{"evaluate.scoring": {"name": "ecko"}})
    kinds = ("defenses", "judges", "tasks", "sources", "attacks")
    told = commands(
        target,
        tmp_path,
        *(["list", kind] for kind in kinds),
        ["run", str(wrong)],
        ["run", str(field)],
        ["run", str(task)],
        ["run", str(good), "--store", "store", "--device", "cpu"],
    )
    lists, runs = dict(zip(kinds, told, strict=False)), told[len(kinds) :]
    for kind, name in zip(kinds, ("halved", "shouting", "echo", "brews", "twice"), strict=True):
        code, out, err = lists[kind]
        (line,) = (line for line in out.splitlines() if line.startswith(f"{name} "))
        assert (code, err) == (0, "") and line.endswith("(from acme 1.2)")
    assert runs[0][0] == 2 and "align.defense.name: unknown name (found 'halvd'" in runs[0][2]
    assert runs[0][2].endswith("Did you mean 'halved'?\n")
    assert runs[1][0] == 2 and "unknown field (found 'lamb'). Did you mean 'lam'?" in runs[1][2]
    assert runs[2][0] == 2 and "evaluate.scoring.name: unknown name (found 'ecko'" in runs[2][2]
    assert runs[3][0] == 0, runs[3][2]
    rows = [json.loads(line) for file in (tmp_path / "store").glob("*/records.jsonl") for line in file.open()]
    assert {row["judge"] for row in rows} == {"refusal", "shouting", ""}
    assert {row["defense"] for row in rows} == {"halved"}
    assert {row["attack"] for row in rows} == {"none", "twice"}
    assert max(row["step"] for row in rows if row["attack"] == "twice" and row["step"] is not None) == 4
    about = json.loads((tiny.only(tmp_path / "store", "finetune") / "stage.json").read_text())
    assert about["plugins"] == {
        "inoculate.attacks:twice": "acme 1.2",
        "inoculate.defenses:halved": "acme 1.2",
        "inoculate.judges:shouting": "acme 1.2",
    }
    assert about["value"]["model"]["defense"]["lam"] == 2.5
    assert "brews/heldout v1 package:1" in about["fingerprints"].values()


def test_what_cannot_be_used_is_said_and_left_out(target, tmp_path):
    """One line for each, with the package and the reason; the others are there."""
    install(target, "zeta", "0.1", BAD, "acme_more.py")
    listed, sources, used = commands(
        target,
        tmp_path,
        ["list", "defenses"],
        ["list", "sources"],
        ["run", str(recipe(tmp_path, "bad.yaml", matrix={"align.defense": [{"name": "gone"}]}))],
    )
    names = [line.split()[0] for line in listed[1].splitlines()]
    assert listed[0] == 0 and names[-1] == "halved" and not {"gone", "idle", "other", "plain"} & set(names)
    whose = "of zeta 0.1 (inoculate.defenses) is left out:"
    assert listed[2].splitlines() == [
        f"inoculate: plug-in 'booster' {whose} the name is taken by inoculate",
        f"inoculate: plug-in 'gone' {whose} acme_gone:Gone: ModuleNotFoundError: No module named 'acme_gone'",
        f"inoculate: plug-in 'halved' {whose} the name is taken by acme 1.2",
        f"inoculate: plug-in 'idle' {whose} Idle has no `needs`",
        f"""inoculate: plug-in 'other' {whose} expected a field `name: Literal["other"] = "other"`""",
        f"inoculate: plug-in 'plain' {whose} expected a subclass of inoculate.core.types.Value",
    ]
    assert sources[0] == 0 and "\nbrews " in sources[1] and len(sources[2].splitlines()) == 2
    assert used[0] == 2 and "unknown name (found 'gone'" in used[2]


def test_a_plugin_s_package_is_part_of_the_hash(target, tmp_path):
    """A new version of the plug-in is another result; what uses no plug-in keeps its hash."""
    uses = recipe(tmp_path, "uses.yaml")
    plain = tiny.write(tmp_path, {"matrix": tiny.ONE_LINE})
    ask = (
        ["run", str(uses), "--dry-run", "--store", "store"],
        ["run", str(plain), "--store", "store", "--device", "cpu"],
    )
    (first, _), newer = commands(target, tmp_path, *ask), tmp_path / "newer"
    newer.mkdir()
    install(newer, "acme", "1.3", GOOD, "acme.py")
    again = commands(newer, tmp_path, ask[1])
    assert first[0] == 0 and "0 of them computed now" in again[0][2]
    script = f"""
import sys; sys.path.insert(0, sys.argv[1])
from inoculate.experiments.recipe import load_recipe
print(sorted(stage.folder for stage in load_recipe({str(uses)!r}).stages()))
"""
    told = [
        subprocess.run([sys.executable, "-c", script, str(site)], capture_output=True, text=True, check=True).stdout
        for site in (target, newer)
    ]
    assert told[0] != told[1]


def test_a_table_without_plugins_is_its_own():
    table = Table("inoculate.nothing", {"a": int}, lambda name, thing: None)
    assert dict(table) == {"a": int} and len(table) == 1 and table.package_of(int) is None
    assert fault_of_value("a", int) == "expected a subclass of inoculate.core.types.Value"


def test_an_unnamed_failure_is_a_warning(monkeypatch):
    class Point:
        name, value, dist = "a", "m:x", None

        def load(self):
            raise SyntaxError("bad\nline")

    monkeypatch.setattr("inoculate.core.plugins._points", lambda group: [Point()])
    with pytest.warns(PlugInWarning, match=r"plug-in 'a' of an unnamed package .* SyntaxError: bad line"):
        assert not dict(Table("inoculate.x", {}, lambda name, thing: None))
