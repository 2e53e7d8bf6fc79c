"""One whole run of the tiny recipe, shared by the tests that only look at it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from tests.experiments import tiny


class Finished(NamedTuple):
    """A recipe that was run without a hitch."""

    recipe: Path
    store: Path
    said: str


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    recipe, store = tiny.write(folder), folder / "store"
    code, said = tiny.run(recipe, store)
    assert code == 0
    return Finished(recipe, store, said)
