"""docs/reproduction.md: every claim of the three papers, and what the records in some stores say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inoculate.core.errors import InputError
from inoculate.evals.statistics import Estimate
from inoculate.reports.reproduction.booster import BOOSTER_CLAIMS
from inoculate.reports.reproduction.claims import Claim, Finding, verdict
from inoculate.reports.reproduction.mlac import MLAC_CLAIMS
from inoculate.reports.reproduction.security_vectors import SECURITY_VECTORS_CLAIMS
from inoculate.reports.store_view import StoreView, read_store, recipes_in

CLAIMS: tuple[Claim, ...] = (*MLAC_CLAIMS, *BOOSTER_CLAIMS, *SECURITY_VECTORS_CLAIMS)
NEEDS_A_GPU, NOT_RUN, UNANSWERED = "needs a GPU", "not run", "records do not answer it"
_ABOUT = ("name", "title", "question", "description")
_HEAD = """# What reproduces

Made by `inoculate reproduce` from records; no row is typed by hand. Sizes are those of a sandbox on two cores: compare
orderings with the papers', not sizes.

A number is a mean over seeds with its 95 % interval (Student's t; differences are paired by seed). *Reproduced*: the
whole interval satisfies what stands behind the number; *direction only*: the mean does, or there is one seed; *not
reproduced*: the mean does not. A row is what the least of its numbers is. *Not run*: no store given holds the recipe to
its end.
"""


@dataclass(frozen=True)
class Row:
    """A claim and what was found."""

    claim: Claim
    findings: tuple[Finding, ...]
    verdict: str


def reproduction(stores: Sequence[Path], recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as Markdown.

    Args:
        stores: each holds some of the recipes.
        recipes: name → the bundled recipe as it is now, resolved.

    Raises:
        InputError: a recipe stands in two stores, or was run in another version than the bundled one.
    """
    held = _held(stores)
    rows = [_row(claim, held, recipes) for claim in CLAIMS]
    counted = Counter(row.verdict for row in rows)
    parts = [_HEAD, ", ".join(f"{number} {kind}" for kind, number in counted.most_common()) + ".\n"]
    for paper in dict.fromkeys(claim.paper for claim in CLAIMS):
        parts.append(f"## {paper}\n")
        parts.append("| claim | published | ours | setting | recipe | verdict |\n|---|---|---|---|---|---|")
        parts += [_line(row) for row in rows if row.claim.paper == paper]
        parts.append("")
    return "\n".join(parts)


def _held(stores: Sequence[Path]) -> dict[str, Path]:
    """Recipe → the store that holds it."""
    held: dict[str, Path] = {}
    for store in stores:
        for name in recipes_in(store):
            if name in held:
                raise InputError(
                    "two stores hold this recipe, and their records do not mix",
                    file=store,
                    field=name,
                    expected=f"one of {held[name]} and {store}",
                )
            held[name] = store
    return held


def _row(claim: Claim, held: Mapping[str, Path], recipes: Mapping[str, Mapping[str, Any]]) -> Row:
    if claim.measure is None:
        return Row(claim, (), NEEDS_A_GPU)
    if claim.recipe not in held:
        return Row(claim, (), NOT_RUN)
    view = read_store(held[claim.recipe], claim.recipe)
    _check_version(view, claim.recipe, recipes)
    if any(stage.status not in ("done", "diverged") for stage in view.stages):
        return Row(claim, (), NOT_RUN)
    findings = tuple(claim.measure(view.records))
    found = verdict(findings)
    return Row(claim, findings, UNANSWERED if found is None else str(found))


def _check_version(view: StoreView, name: str, recipes: Mapping[str, Mapping[str, Any]]) -> None:
    """A table takes records of one version of one recipe; texts about it may change."""
    (manifest,) = view.manifests
    ran, now = _settings(manifest["recipe"]), _settings(recipes[name])
    if ran != now:
        differ = sorted(key for key in {*ran, *now} if ran.get(key) != now.get(key))
        raise InputError(
            "its records are of another version of this recipe",
            file=view.path,
            field=name,
            found=f"other {', '.join(differ)}",
            expected=f"`inoculate run {name} --store {view.path}`, which adds what is missing",
        )


def _settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in _ABOUT}


def _line(row: Row) -> str:
    claim = row.claim
    ours = "<br>".join(_told(finding) for finding in row.findings) or "–"
    recipe = f"`{claim.recipe}`"
    cells = (claim.text, claim.published, ours, claim.setting, recipe, f"**{row.verdict}**")
    return f"| {' | '.join(cell.replace('|', '∣') for cell in cells)} |"


def _told(finding: Finding) -> str:
    if finding.found is None:
        return f"{finding.label}: nothing on record"
    return f"{finding.label}: {estimate_text(finding.found)} ({finding.rule}: {finding.rule.verdict(finding.found)})"


def estimate_text(found: Estimate) -> str:
    """`+.012 (−.004 to +.028), n = 5`."""
    if found.interval is None:
        return f"{_number(found.value)}, n = {found.n}"
    low, high = found.interval
    return f"{_number(found.value)} ({_number(low)} to {_number(high)}), n = {found.n}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"
