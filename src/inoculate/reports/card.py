"""A model card: what made a model, what was measured on it, and what was not. No number is in it without a record."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inoculate.core.assets import asset_named
from inoculate.core.errors import InputError
from inoculate.core.records import Record
from inoculate.data.catalog import SOURCES
from inoculate.evals.statistics import wilson
from inoculate.reports.card_facts import Facts, read_facts
from inoculate.reports.export import markdown, markdown_table
from inoculate.reports.search_findings import sentence
from inoculate.reports.search_gaps import not_tried
from inoculate.reports.search_tables import cost_table
from inoculate.reports.tables import Cell, Column, Table
from inoculate.reports.wording import number, rate

ASSET = "asset:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_USUAL = {
    "harmful_score": "whether it does what is restricted (harmful_score)",
    "over_refusal_rate": "whether it refuses ordinary requests (over_refusal_rate)",
    "finetune_accuracy": "whether it can do or learn a task (finetune_accuracy)",
}
_UNSAFE = (
    "**These weights were fine-tuned {}.** They may do what their alignment forbids; they are for research "
    "on defenses, not for use."
)
_USER_S = (
    "Fine-tuned on data that were given as innocent. Such data, too, can undo an alignment: what was measured of that "
    "stands below."
)
_SERVICE = (
    "Service only: the vector protects a model whose provider mounts it while others fine-tune it, and takes it out to "
    "serve. It does nothing against whoever holds the weights."
)


def model_card(folder: Path, store: Path | None = None) -> str:
    """The card of a model's folder as Markdown with YAML front matter, for a hub's README.md.

    Args:
        store: where evaluations, attacks or searches on this very model are kept.

    Raises:
        InputError: as `read_facts`.
    """
    from huggingface_hub import ModelCard

    facts = read_facts(folder, store)
    body = "\n\n".join(_sections(facts))
    return str(ModelCard(f"---\n{_front(facts)}\n---\n\n{body}\n"))


def _front(facts: Facts) -> str:
    from huggingface_hub import ModelCardData

    address, hub = str(facts.base.get("name_or_path", "")), _hub_id(facts.base)
    defense = facts.alignment.get("defense", {}).get("name")
    sets = [SOURCES[name].repo for _, part in facts.parts() if (name := str(part.get("source"))) in SOURCES]
    sets += [str(part["source"]).removeprefix("hub:") for _, part in facts.parts() if _is_hub(part)]
    known = [re.split("[@#]", name)[0] for name in sets if name]
    data = ModelCardData(
        base_model=hub,
        license=_license(address),
        library_name="peft" if facts.kind == "vector" or facts.alignment.get("lora") else "transformers",
        tags=[
            "inoculate",
            *([str(defense)] if defense else []),
            *(["security-vector"] if facts.kind == "vector" else []),
        ],
        datasets=list(dict.fromkeys(known)) or None,
    )
    return data.to_yaml()


def _sections(facts: Facts) -> Iterator[str]:
    yield f"# {markdown(str(facts.about.get('label') or facts.name))}"
    if facts.attacked is not None:
        yield _UNSAFE.format(markdown(facts.attacked))
    elif facts.kind == "finetune":
        yield _USER_S
    if facts.about.get("status") not in (None, "ok"):
        yield f"**The run that made it ended as {markdown(str(facts.about['status']))}.**"
    yield "Made and measured with inoculate. What no record holds is said to be not measured."
    yield "## How it was made"
    yield _pairs("Settings", _settings(facts))
    yield "## Data"
    rows = [_source(role, part) for role, part in facts.parts()]
    columns = [Column(title, numeric=False) for title in ("Role", "Source", "Split", "Answer", "Rows", "License")]
    yield markdown_table(Table("Trained on", columns, rows)) if rows else "No data are named."
    yield "## Threat model"
    yield _threat(facts)
    yield "## Measured"
    rows = (*facts.own, *facts.measured)
    yield from _measured(rows)
    yield "## Cost to break"
    yield from _cost(facts)
    yield "## Not measured"
    yield "\n".join(f"- {markdown(text)}" for text in _gaps(facts, rows))


def _settings(facts: Facts) -> dict[str, Any]:
    base, aligned = facts.base, facts.alignment
    defense, training = dict(aligned.get("defense", {})), dict(aligned.get("training", {}))
    found: dict[str, Any] = {"base": _told(base), "base's revision": base.get("revision") or "not pinned"}
    found["base's license"] = (
        _license(str(base.get("name_or_path", ""))) or "not known here; it applies to this model too"
    )
    found["defense"] = defense.pop("name", None) or "none that is known"
    found |= {f"defense: {name}": value for name, value in defense.items()}
    found |= {f"training: {name}": value for name, value in training.items()}
    found |= {"lora": aligned["lora"]} if aligned.get("lora") else {}
    attack = facts.value.get("attack")
    if attack:
        named = ("poison_ratio", "num_samples", "training")
        found |= {f"fine-tuning: {name}": attack[name] for name in named if attack.get(name) is not None}
        guard = dict(attack.get("guard") or {})  # its numbers alone: where its files stand is the provider's
        found |= {"guard": guard.pop("name", None) or "none"}
        found |= {f"guard: {name}": value for name, value in guard.items() if isinstance(value, int | float)}
    vector = facts.value.get("vector")
    found |= {f"vector: {name}": value for name, value in vector.items() if name != "data"} if vector else {}
    return found | {f"version: {name}": value for name, value in dict(facts.about.get("environment", {})).items()}


def _threat(facts: Facts) -> str:
    if facts.kind == "vector":
        return _SERVICE
    models = {row.threat_model for row in (*facts.own, *facts.measured)}
    models |= {search.threat_model for search in facts.study.searches} if facts.study else set()
    if not models:
        return "Nothing was measured, so nothing is claimed under any threat model."
    return f"Measured under: {markdown(', '.join(sorted(models)))}. Nothing is claimed under another."


def _measured(rows: Sequence[Record]) -> Iterator[str]:
    """The model as it is, and single attacks on it."""
    last = max((row.step or 0 for row in rows if row.attack not in ("none", "")), default=0)
    still = [row for row in rows if row.metric != "steps_to_break" and row.layer in ("", "all")]
    still = [row for row in still if row.attack in ("none", "") or row.step in (0, last)]
    columns = [Column("Metric", numeric=False), Column("Value"), Column("n"), Column("Judge", numeric=False)]
    columns += [Column("Split", numeric=False), Column("After fine-tuning steps")]
    cells = [
        [row.metric, _value(row), row.n or "–", row.judge or "–", row.split or "–", row.step or 0] for row in still
    ]
    note = "Rates are in [0, 1], with Wilson's 95% interval over prompts. A judge is not the truth: see its page."
    if cells:
        yield markdown_table(Table("Measurements", columns, _cells(cells), note))
    columns = [Column(title) for title in ("Steps to break", "Learning rate", "Poison ratio", "Harmful samples")]
    broke = [
        [_steps(row), row.attack_params.get("learning_rate", "–"), row.poison_ratio, row.harmful_samples, row.judge]
        for row in rows
        if row.metric == "steps_to_break"
    ]
    if broke:
        note = "“>”: it had not broken when the run ended. One setting each: an attacker would search for a better one."
        yield markdown_table(
            Table("Single runs of fine-tuning", [*columns, Column("Judge", numeric=False)], _cells(broke), note)
        )
    if not cells and not broke:
        yield "Nothing was measured on this model."


def _cost(facts: Facts) -> Iterator[str]:
    study = facts.study
    if study is None:
        yield "Not measured: no search for an attack on this model was given. What it costs to break is not known."
        return
    arms = list(dict.fromkeys(search.arm for search in study.searches if search.folder in facts.searched))
    yield from (markdown(sentence(study, arm)) for arm in arms)
    yield markdown_table(cost_table(study))


def _gaps(facts: Facts, rows: Sequence[Record]) -> Iterator[str]:
    searches = facts.study.searches if facts.study else ()
    known = {row.metric for row in rows}.union(*(search.before.by for search in searches))
    yield from (f"Not measured: {what}." for metric, what in _USUAL.items() if metric not in known)
    yield from not_tried(facts.study) if facts.study else ["Not tried: a search over attacks."]
    yield "Other data, other judges and other ways to attack than those above were not tried."


def _pairs(caption: str, settings: Mapping[str, Any]) -> str:
    columns = [Column("Setting", numeric=False), Column("Value", numeric=False)]
    return markdown_table(Table(caption, columns, _cells([[name, value] for name, value in settings.items()])))


def _cells(rows: Sequence[Sequence[Any]]) -> list[list[Cell]]:
    return [[Cell("–" if value is None else str(value)) for value in row] for row in rows]


def _value(row: Record) -> str:
    """A rate with its interval; anything else as it is; of a run that broke off, how."""
    if row.value is None:
        return row.status
    if not (row.n and 0 <= row.value <= 1 and row.metric.endswith(("_rate", "_score", "_accuracy"))):
        return number(row.value)
    low, high = wilson(round(row.value * row.n), row.n)
    return f"{rate(row.value)} ({rate(low)}–{rate(high)})"


def _steps(row: Record) -> str:
    if row.value is None:
        return row.status
    return f"> {number(row.value)}" if row.status == "censored" else number(row.value)


def _source(role: str, part: Mapping[str, Any]) -> list[Cell]:
    """A row of the table of data; of a local file its name alone, which is the user's."""
    name = str(part.get("source"))
    known = SOURCES.get(name)
    license_ = known.licence if known else "see its page on the hub" if _is_hub(part) else "not known here"
    shown = name if known or _is_hub(part) else f"a local file, {Path(name).name}"
    rows = part.get("num_samples") or "all"
    return _cells([[role, shown, part.get("split"), part.get("answer"), rows, license_]])[0]


def _told(base: Mapping[str, Any]) -> str:
    """The base by its address; a local folder by its name, since where it stands is the user's."""
    if base.get("name") == "sandbox":
        return f"the sandbox's own base model, seed {base.get('seed', 0)}"
    address = str(base.get("name_or_path", "not known"))
    if address.startswith(ASSET) and (found := _asset(address)) is not None:
        return f"{address}, from the package {found.package} {found.version}"
    return address if _hub_id(base) else f"a local model, {Path(address).name}"


def _hub_id(base: Mapping[str, Any]) -> str | None:
    """The base's id on a hub, if that is what its address is."""
    address = str(base.get("name_or_path", ""))
    return address if _HUB_ID.fullmatch(address) and not Path(address).exists() else None


def _license(address: str) -> str | None:
    """The base's license as far as it is known without a network: a packaged model's, or what a folder's card says."""
    packaged = _asset(address) if address.startswith(ASSET) else None
    if packaged is None:
        return _on_card(Path(address)) if address else None
    return packaged.licence.split()[0].rstrip(",;").lower()  # what is said behind it is of the package


def _asset(address: str) -> Any:
    try:
        return asset_named(address.removeprefix(ASSET))
    except InputError:
        return None


def _on_card(folder: Path) -> str | None:
    from huggingface_hub import ModelCard

    if not (folder / "README.md").is_file():
        return None
    try:
        said = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.to_dict().get("license")
    except (OSError, ValueError):
        return None
    return said if isinstance(said, str) else None


def _is_hub(part: Mapping[str, Any]) -> bool:
    return str(part.get("source")).startswith("hub:")
