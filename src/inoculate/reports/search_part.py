"""The report's part on attack searches: what a defense is worth."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import NamedTuple

from inoculate.reports.search_findings import Card, card, sentence
from inoculate.reports.search_gaps import not_tried
from inoculate.reports.search_gather import gather_searches
from inoculate.reports.search_tables import agreement_table, around_table, cost_table, trials_table
from inoculate.reports.search_worst import worst_table
from inoculate.reports.searches import SearchStudy
from inoculate.reports.store_view import StoreView
from inoculate.reports.tables import Table
from inoculate.reports.wording import visible

REPLAY = "worst-attack.yaml"


class Replay(NamedTuple):
    """How to run the worst attack on one model again."""

    defense: str
    seed: str
    command: str


class SearchPart(NamedTuple):
    """What a report says about attack searches, in its order."""

    study: SearchStudy
    cards: tuple[Card, ...]
    findings: tuple[str, ...]
    costs: Table
    worst: Table
    replays: tuple[Replay, ...]
    around: Table
    trials: Table
    agreement: Table | None
    gaps: tuple[str, ...]

    def tables(self) -> tuple[Table, ...]:
        """All tables, in the page's order."""
        found = (self.costs, self.worst, self.trials, self.agreement, self.around)
        return tuple(table for table in found if table is not None)


def search_part(view: StoreView) -> SearchPart | None:
    """The part on searches; None where a store holds none.

    Raises:
        InputError: as `gather_searches`.
    """
    study = gather_searches(view)
    if study is None:
        return None
    return SearchPart(
        study=study,
        cards=tuple(card(study, arm) for arm in study.arms),
        findings=tuple(sentence(study, arm) for arm in study.arms),
        costs=cost_table(study),
        worst=worst_table(study),
        replays=_replays(view, study),
        around=around_table(study),
        trials=trials_table(study),
        agreement=agreement_table(study),
        gaps=tuple(not_tried(study)),
    )


def _replays(view: StoreView, study: SearchStudy) -> tuple[Replay, ...]:
    paths = {stage.folder: stage.path for stage in view.stages}
    found = []
    for search in study.searches:
        file = paths[search.folder] / REPLAY
        seed = "/".join(str(part) for part in dict.fromkeys(part for part in search.seed if part is not None))
        if file.exists():
            command = visible(f"inoculate run {shlex.quote(str(_near(file)))}")
            found.append(Replay(search.arm.label, seed or "–", command))
    return tuple(found)


def _near(file: Path) -> Path:
    """The path from the working folder, or from the store where that lies elsewhere: a page is passed on."""
    whole = file.resolve()
    path = Path(os.path.relpath(whole))
    return whole.relative_to(whole.parents[min(2, len(whole.parents) - 1)]) if ".." in path.parts else path
