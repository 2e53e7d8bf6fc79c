"""The one table of worlds."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from inoculate.data.bias_in_bios import BiasInBios
from inoculate.data.biographies import Biographies
from inoculate.data.labeled_file import LabeledFile
from inoculate.data.vader_domains import VaderDomains
from inoculate.data.vectors import Products, Separators
from inoculate.data.wordnet_bios import WordnetBios

_ALL = (Products, Separators, Biographies, VaderDomains, WordnetBios, BiasInBios, LabeledFile)

WORLDS: Mapping[str, type] = MappingProxyType({world.model_fields["name"].default: world for world in _ALL})
"""Name → class."""

WorldConfig = Annotated[
    Products | Separators | Biographies | VaderDomains | WordnetBios | BiasInBios | LabeledFile,
    Field(discriminator="name"),
]
"""A world as a part of an experiment: `name` says which."""
