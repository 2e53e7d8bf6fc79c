"""Guards: what a provider does inside a user's fine-tuning so that harm is not learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inoculate.core.types import Value
from inoculate.data.mix import Part
from inoculate.defenses import Lisa


class MountedVector(Value):
    """Train with a security vector mounted; it is taken out for serving."""

    name: Literal["security_vector"] = "security_vector"
    folder: str | None = None
    """The vector's folder; in a recipe null stands for the one that `vector:` describes."""

    def check(self) -> None:
        """Refuse a folder that holds no security vector.

        Raises:
            InputError: as `read_vector`.
        """
        if self.folder is not None:
            from inoculate.models.vectors import read_vector

            read_vector(self.folder)


class LisaGuard(Lisa):
    """Train in phases that take turns with alignment data."""

    guide: tuple[Part, ...] = ()
    """The provider's alignment data; in a recipe none stands for the alignment's own."""


Guard = Annotated[MountedVector | LisaGuard, Field(discriminator="name")]
