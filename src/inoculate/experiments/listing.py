"""What there is: the tables of recipes, defenses, attacks, judges, sources, worlds and packaged models."""

from __future__ import annotations

from typing import Literal

import yaml

from inoculate.attacks.few_shot import FewShot
from inoculate.attacks.finetune import Finetune
from inoculate.core.assets import asset_named
from inoculate.data.sources import SOURCES
from inoculate.data.world_table import WORLDS
from inoculate.defenses import DEFENSES
from inoculate.evals.judges import JUDGES
from inoculate.experiments.recipe import bundled
from inoculate.models.checkpoint import ENCODER_MEMBERS, GGUF_MEMBERS


def listing(kind: Literal["recipes", "defenses", "attacks", "judges", "sources", "models", "worlds"]) -> str:
    """One line per entry: name and what it is."""
    match kind:
        case "recipes":
            rows = {name: yaml.safe_load(path.read_text(encoding="utf-8"))["title"] for name, path in bundled().items()}
        case "defenses":
            rows = {name: _first_line(defense) for name, defense in DEFENSES.items()}
        case "attacks":
            rows = {"finetune": _first_line(Finetune), "few_shot": _first_line(FewShot)}
        case "judges":
            rows = {name: _first_line(judge) for name, judge in JUDGES.items()}
        case "sources":
            rows = {name: f"{source.kind}: {source.description} [{source.licence}]" for name, source in SOURCES.items()}
        case "models":
            rows = {f"asset:{name}": _packaged(name) for name in (*GGUF_MEMBERS, *ENCODER_MEMBERS)}
        case "worlds":
            rows = {name: _first_line(world) for name, world in WORLDS.items()}
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _packaged(name: str) -> str:
    asset = asset_named(name)
    return f"from the package {asset.package} {asset.version}, {asset.size_mb} MB [{asset.licence}]"


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]
