"""Recipes: a line of stages as YAML, and an explicit matrix of what varies."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inoculate.core.errors import InputError
from inoculate.core.hashing import digest
from inoculate.core.paths import local_path
from inoculate.core.types import JsonDict, Value
from inoculate.experiments.base import Pretrained
from inoculate.experiments.blame import input_error
from inoculate.experiments.lines import CostLine, FewShotLine, Line
from inoculate.experiments.plain_yaml import parse_yaml, read_yaml
from inoculate.experiments.search_line import SearchLine
from inoculate.experiments.stage import Stage, check_inputs

AnyLine = Line | FewShotLine | CostLine | SearchLine
BUNDLED = Path(__file__).parent.parent / "recipes"
_TOGETHER = "together"
_COLLECTS = "collects"
_KINDS: Mapping[str, type[AnyLine]] = {"cost": CostLine, "search": SearchLine, "world": FewShotLine, "evaluate": Line}
"""Kinds of lines, by a field that no kind before it has."""
_ABOUT = ("name", "title", "question", "description", "matrix")


class Recipe(Value):
    """A validated recipe: every cell of its matrix is a valid line."""

    name: str
    title: str
    question: str = ""
    description: str = ""
    raw: JsonDict
    lines: tuple[AnyLine, ...]

    @property
    def hash(self) -> str:
        """12 hex digits over the resolved recipe."""
        return digest(self.raw)

    def stages(self) -> list[Stage]:
        """The stages of all lines, each once."""
        unique = {stage.folder: stage for line in self.lines for stage in line.stages()}
        return list(unique.values())


def bundled() -> dict[str, Path]:
    """Name → file of the recipes that ship with the package."""
    return {path.relative_to(BUNDLED).with_suffix("").as_posix(): path for path in sorted(BUNDLED.rglob("*.yaml"))}


def load_recipes(name: str, overrides: Sequence[str] = (), *, weights: bool = True) -> tuple[Recipe, ...]:
    """The recipes that a collection names under `collects`, in its order; of any other file the one that it is.

    Args:
        weights: as of `load_recipe`.

    Raises:
        InputError: as `load_recipe`; overrides of a collection.
    """
    path = _file(name)
    raw = _yaml(path)
    if _COLLECTS not in raw:
        return (load_recipe(name, overrides, weights=weights),)
    names = raw[_COLLECTS]
    if not isinstance(names, list) or not names or not all(isinstance(member, str) for member in names):
        raise InputError("expected a list of recipes' names", file=path, field=_COLLECTS, found=names)
    if extra := next((key for key in raw if key not in (_COLLECTS, *_ABOUT)), None):
        raise InputError("a collection has nothing of its own", file=path, field=str(extra), expected=_COLLECTS)
    if overrides:
        raise InputError("a collection takes no overrides: run the recipe alone", field="--set", found=overrides[0])
    return tuple(load_recipe(member, weights=weights) for member in names)


def load_recipe(name: str, overrides: Sequence[str] = (), *, weights: bool = True) -> Recipe:
    """Read a bundled recipe by name or a YAML file by path, apply `a.b.c=value` overrides, validate every cell.

    Args:
        weights: whether base models must be there, as for a run; a plan reads their configuration alone.

    Raises:
        InputError: naming the file, the field, what was found and what is valid.
    """
    path = _file(name)
    return recipe_of(_read(path), path, overrides, weights=weights)


def recipe_of(
    raw: dict[str, Any],
    path: Path,
    overrides: Sequence[str] = (),
    *,
    weights: bool = True,
    complete: Callable[[dict[str, Any]], None] | None = None,
) -> Recipe:
    """A recipe from its keys.

    Args:
        path: of the file that they are from, or what stands for it in messages.
        complete: fills in what hangs on the data; called when all else is valid.

    Raises:
        InputError: as `load_recipe`.
    """
    swept = {key for block in _blocks(raw, path) for axis, values in block.items() for key in _fields(axis, values)}
    for override in overrides:
        key, value = parse_override(override)
        clash = next((s for s in swept if s == key or s.startswith(key + ".") or key.startswith(s + ".")), None)
        if clash is not None:
            raise InputError(f"the matrix sweeps {clash!r}, so this would have no effect", file="--set", field=key)
        set_field(raw, key, value, file="--set")
    about = {key: raw.get(key, "") for key in ("name", "title", "question", "description")}
    about["name"], about["title"] = about["name"] or path.stem, about["title"] or path.stem
    for key, value in about.items():
        if not isinstance(value, str):
            raise InputError("wrong type", file=path, field=key, found=value, expected="text")
    lines = _lines(raw, path)
    if complete is not None:
        complete(raw)
        lines = _lines(raw, path)
    recipe = Recipe(**about, raw=raw, lines=tuple(lines))
    try:
        check_inputs((stage for line in lines for stage in line.stages()), but=() if weights else (Pretrained,))
        recipe.stages()
    except InputError as error:
        raise (error.inside(path) if path.is_file() else error.located(file=path)) from None
    return recipe


def _lines(raw: dict[str, Any], path: Path) -> list[AnyLine]:
    lines = []
    for cell in _cells(raw, path):
        try:
            lines.append(_line_type(cell).model_validate(cell))
        except ValidationError as error:
            raise input_error(error, _line_type(cell), cell, path) from None
    return lines


def _file(name: str) -> Path:
    path = bundled().get(name) or local_path(name, "RECIPE")
    if not path.is_file():
        raise InputError("no such recipe, and no such file", field="RECIPE", found=name, known=bundled())
    return path


def _yaml(path: Path) -> dict[str, Any]:
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise InputError("a recipe is a mapping of keys", file=path, found=type(raw).__name__)
    return raw


def _read(path: Path, trail: tuple[Path, ...] = ()) -> dict[str, Any]:
    raw = _yaml(path)
    if _COLLECTS in raw:
        raise InputError(
            "a collection of recipes, where one is expected",
            file=path,
            field=_COLLECTS,
            expected="one of them" if trail else "`inoculate run` for all, or one of them",
            known=raw[_COLLECTS],
        )
    known = (
        "extends",
        *_ABOUT,
        *dict.fromkeys(field for kind in _KINDS.values() for field in kind.model_fields),
    )
    for key in raw:
        if key not in known:
            raise InputError("unknown key", file=path, field=str(key), found=key, known=known)
    if "extends" not in raw:
        return raw
    parent = bundled().get(str(raw["extends"])) or local_path(str(path.parent / str(raw["extends"])), "extends")
    if path in trail or not parent.is_file():
        problem = "recipes extend each other in a circle" if path in trail else "no such recipe, and no such file"
        raise InputError(problem, file=path, field="extends", found=raw["extends"], known=bundled())
    inherited = _read(parent, (*trail, path))
    own = {key: value for key, value in raw.items() if key != "extends"}
    return inherited | {key: v if key == "matrix" else _merged(inherited.get(key), v) for key, v in own.items()}


def _merged(below: Any, above: Any) -> Any:
    """Mappings are merged key by key; lists, named values (a defense, a base) and all else are replaced."""
    if not isinstance(below, dict) or not isinstance(above, dict) or "name" in above:
        return above
    return below | {key: _merged(below.get(key), value) for key, value in above.items()}


def _blocks(raw: Mapping[str, Any], path: Path) -> list[dict[str, list[Any]]]:
    matrix = raw.get("matrix") or {}
    blocks = matrix if isinstance(matrix, list) else [matrix]
    for block in blocks:
        if not isinstance(block, dict):
            raise InputError("a block of the matrix is a mapping", file=path, field="matrix", found=block)
        for key, values in block.items():
            if not isinstance(values, list) or not values:
                raise InputError("expected a list of values", file=path, field=f"matrix.{key}", found=values)
            if key == _TOGETHER and not all(isinstance(point, dict) for point in values):
                raise InputError("expected mappings of fields", file=path, field=f"matrix.{key}", found=values)
    return blocks


def _fields(axis: str, values: list[Any]) -> list[str]:
    """The dotted fields that one axis of the matrix sets."""
    if axis == _TOGETHER:
        return list(dict.fromkeys(key for point in values for key in point))
    return [key.strip() for key in axis.split(",")]


def _cells(raw: Mapping[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    """The product of each block's axes.

    An axis is a dotted field and its values; several fields with commas between them take the same value; under
    `together` each value is a mapping of fields that change at once.
    """
    line = {key: value for key, value in raw.items() if key not in _ABOUT}
    for block in _blocks(raw, path):
        for values in itertools.product(*block.values()):
            cell = copy.deepcopy(line)
            for axis, value in zip(block, values, strict=True):
                point = value if axis == _TOGETHER else dict.fromkeys(_fields(axis, []), value)
                for key, field in point.items():
                    set_field(cell, key, copy.deepcopy(field), file=path)
            yield cell


def _line_type(cell: Mapping[str, Any]) -> type[AnyLine]:
    return next((kind for field, kind in _KINDS.items() if field in cell), Line)


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of `a.b.c=value`; the value is YAML.

    Raises:
        InputError: if it is not of that form.
    """
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise InputError("not of the form a.b.c=value", file="--set", found=override)
    try:
        return key, parse_yaml(text)
    except InputError as error:
        problem = "the value is not valid YAML" if "valid YAML" in error.problem else error.problem
        raise InputError(problem, file="--set", field=key, found=text) from None


def set_field(tree: dict[str, Any], key: str, value: Any, file: object) -> None:
    """Put a value at a dotted key of nested mappings and lists, making mappings on the way.

    Raises:
        InputError: if the key runs through something that holds no fields.
    """
    *above, last = key.split(".")
    here: Any = tree
    for name in above:
        if isinstance(here, list):
            here = here[int(name)] if name.isdigit() and int(name) < len(here) else None
        else:
            here = here.setdefault(name, {}) if isinstance(here, dict) else None
        if not isinstance(here, dict | list):
            raise InputError(f"{name!r} holds no fields", file=file, field=key)
    if isinstance(here, list):
        if not last.isdigit() or int(last) >= len(here):
            raise InputError("no such entry of the list", file=file, field=key, found=last)
        here[int(last)] = value
    else:
        here[last] = value
