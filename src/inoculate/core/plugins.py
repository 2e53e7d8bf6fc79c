"""Tables of named things that other packages add to by entry points, and recipe fields that choose from a table.

A package adds to a table by an entry point of the table's group, `name = "module:object"`. Nothing is imported before
a table is first looked into, so importing this package loads no plug-in, and a plug-in may import any part of it. One
that cannot be used is left out, with one warning that names its package; the rest goes on.
"""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, Field, GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from inoculate.core.errors import LEFT_OUT, PlugInWarning
from inoculate.core.types import Value

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Table(Mapping[str, T], Generic[T]):
    """Name → thing: this package's own, then what plug-ins add, by the names of their packages.

    Args:
        group: the entry points' group, `inoculate.<kind>`.
        own: this package's; no plug-in takes one of their names.
        fault: what is wrong with a plug-in's object under a name, in a few words, or None.
    """

    def __init__(self, group: str, own: Mapping[str, T], fault: Callable[[str, Any], str | None]) -> None:
        self.group, self._own, self._fault = group, dict(own), fault
        self._all: dict[str, T] | None = None
        self._loading = False
        self.packages: dict[str, str] = {}
        """Name → package and version, of the plug-ins that have been loaded."""

    def __getitem__(self, name: str) -> T:
        return self._own[name] if name in self._own else self._entries()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    def package_of(self, thing: object) -> tuple[str, str] | None:
        """Name and package of a thing that a plug-in brought; None for this package's own."""
        loaded = {} if self._all is None else self._all
        return next(((name, package) for name, package in self.packages.items() if loaded.get(name) is thing), None)

    def _entries(self) -> dict[str, T]:
        if self._all is None:
            if self._loading:  # a plug-in looks into its own table while it is imported
                return self._own
            self._loading = True
            try:
                self._all = self._own | self._loaded()
            finally:
                self._loading = False
        return self._all

    def _loaded(self) -> dict[str, T]:
        found: dict[str, T] = {}
        for point in _points(self.group):
            package = f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed package"
            taken = "inoculate" if point.name in self._own else self.packages.get(point.name)
            thing, why = _load(point) if taken is None else (None, f"the name is taken by {taken}")
            why = why or self._fault(point.name, thing)
            if why is not None or thing is None:
                told = f"{LEFT_OUT} {point.name!r} of {package} ({self.group}) is left out: {why}"
                warnings.warn(told, PlugInWarning, stacklevel=2)
                continue
            found[point.name], self.packages[point.name] = thing, package
        return found


@functools.cache
def _points(group: str) -> list[EntryPoint]:
    """The entry points of a group, in an order that does not depend on the file system."""
    from importlib.metadata import entry_points

    return sorted(entry_points(group=group), key=lambda point: (point.dist.name if point.dist else "", point.name))


def _load(point: EntryPoint) -> tuple[Any, str | None]:
    """The object, or why there is none. Whatever a stranger's module raises is its own fault."""
    try:
        return point.load(), None
    except Exception as error:  # noqa: BLE001
        return None, f"{point.value}: {type(error).__name__}: {' '.join(str(error).split())}"


def fault_of_value(name: str, thing: Any, *methods: str) -> str | None:
    """What keeps a class from being chosen by name in a recipe: it must be a `Value` with that `name` and `methods`."""
    if not (isinstance(thing, type) and issubclass(thing, Value)):
        return "expected a subclass of inoculate.core.types.Value"
    field = thing.model_fields.get("name")
    if field is None or field.default != name:
        return f'expected a field `name: Literal["{name}"] = "{name}"`'
    missing = next((method for method in methods if not hasattr(thing, method)), None)
    return None if missing is None else f"{thing.__name__} has no `{missing}`"


@dataclass(frozen=True, eq=False)
class OneOf:
    """`Annotated[A | B, OneOf(TABLE)]`: one of a table's classes, told apart by its field `name`.

    As pydantic's tagged union, with the same errors, over a table that is complete only when it is first looked into.

    Args:
        of: only subclasses of it.
        but: names that may not be chosen here.
        default: the name of a mapping that has none.
    """

    table: Table[Any]
    of: type = object
    but: tuple[str, ...] = ()
    default: str | None = None

    def classes(self) -> list[type[BaseModel]]:
        """What may be chosen."""
        return [kind for name, kind in self.table.items() if name not in self.but and issubclass(kind, self.of)]

    def validate(self, given: Any) -> Any:
        """The value; pydantic takes the errors of this call as those of the field."""
        if self.default is not None and isinstance(given, Mapping) and "name" not in given:
            return self.table[self.default].model_validate(given)
        return _adapter(tuple(self.classes())).validate_python(given)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        as_itself = core_schema.wrap_serializer_function_ser_schema(
            lambda value, serialize: serialize(value), schema=core_schema.any_schema()
        )
        return core_schema.no_info_plain_validator_function(self.validate, serialization=as_itself)


@functools.cache
def _adapter(kinds: tuple[type[BaseModel], ...]) -> TypeAdapter[Any]:
    if len(kinds) == 1:
        return TypeAdapter(kinds[0])
    union: Any = Annotated[functools.reduce(operator.or_, kinds), Field(discriminator="name")]
    return TypeAdapter(union)
