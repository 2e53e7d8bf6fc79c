"""What there is: the tables of recipes, defenses, attacks, judges, sources, worlds and packaged models."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import yaml

from inoculate.attacks.table import ATTACKS
from inoculate.core.assets import asset_named
from inoculate.core.plugins import Table
from inoculate.data.sources import SOURCES
from inoculate.data.world_table import WORLDS
from inoculate.defenses import DEFENSES
from inoculate.evals.judges import JUDGES
from inoculate.evals.tasks import TASKS
from inoculate.experiments.recipe import bundled
from inoculate.models.checkpoint import ENCODER_MEMBERS, GGUF_MEMBERS

Kind: TypeAlias = Literal["recipes", "defenses", "attacks", "judges", "tasks", "sources", "models", "worlds"]


def listing(kind: Kind) -> str:
    """One line per entry: name and what it is."""
    match kind:
        case "recipes":
            rows = {name: yaml.safe_load(path.read_text(encoding="utf-8"))["title"] for name, path in bundled().items()}
        case "defenses":
            rows = _classes(DEFENSES)
        case "attacks":
            rows = _classes(ATTACKS)
        case "judges":
            rows = _classes(JUDGES)
        case "tasks":
            rows = _classes(TASKS)
        case "sources":
            rows = {
                name: f"{source.kind}: {source.description} [{source.licence}]" + _package(SOURCES, name)
                for name, source in SOURCES.items()
            }
        case "models":
            rows = {f"asset:{name}": _packaged(name) for name in (*GGUF_MEMBERS, *ENCODER_MEMBERS)}
        case "worlds":
            rows = {name: _first_line(world) for name, world in WORLDS.items()}
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _packaged(name: str) -> str:
    asset = asset_named(name)
    return f"from the package {asset.package} {asset.version}, {asset.size_mb} MB [{asset.licence}]"


def _classes(table: Table[Any]) -> dict[str, str]:
    return {name: _first_line(kind) + _package(table, name) for name, kind in table.items()}


def _package(table: Table[Any], name: str) -> str:
    """Which package a plug-in is of."""
    return f" (from {table.packages[name]})" if name in table.packages else ""


def _first_line(kind: type) -> str:
    return next(iter((kind.__doc__ or "").strip().splitlines()), "says nothing about itself")
