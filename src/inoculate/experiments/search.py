"""Search for the attack that breaks a model at the least cost, and run it again where nothing was chosen on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from inoculate.attacks.finetune import Finetune, guard_params
from inoculate.attacks.guards import MountedVector
from inoculate.attacks.search import Bound, Search
from inoculate.attacks.space import Setting
from inoculate.attacks.threat_model import LIMITS, OpenWeights, ThreatModel
from inoculate.core.errors import InputError, StageError
from inoculate.core.hashing import tree_sha256
from inoculate.core.records import Record, read_records, write_records
from inoculate.data import sources
from inoculate.evals.evaluate import Evaluation
from inoculate.experiments.align import Align
from inoculate.experiments.apart import Apart, learned_by
from inoculate.experiments.model import Model, inputs_of, model_fingerprint, name_of, origin
from inoculate.experiments.replay import replay_recipe
from inoculate.experiments.search_bench import BOUND, CHOSEN, Bench, read_bound, study_of, work_side_by_side
from inoculate.experiments.search_records import search_records, telling_responses
from inoculate.experiments.stage import Context, Input, Stage, evaluation_fingerprints, write_responses
from inoculate.experiments.store import write_json
from inoculate.experiments.vector import Vector

REPLAY = "worst-attack.yaml"


class SearchAttack(Stage):
    """What a model's defense is worth: a search over attacks, and the chosen one on held-out prompts."""

    kind: ClassVar[str] = "search"
    version: ClassVar[int] = 2  # the finalists' runs are rows too
    unhashed: ClassVar[Mapping[str, Any]] = {"threat_model": LIMITS}
    model: Model
    search: Search
    evaluate: Evaluation
    """Held-out prompts: the chosen attack is reported on them. The first judge's verdicts are the harmful score."""
    validation: Evaluation
    """The attacker's own prompts: attacks are chosen on them."""
    threat_model: ThreatModel = OpenWeights()
    vector: Vector | None = None
    """The security vector that this experiment trains, if the attack's guard mounts one."""
    control: SearchAttack | None = None
    """The same search on the undefended model: what broke that is tried first, and its utility is the reference."""

    @model_validator(mode="after")
    def _is_possible(self) -> SearchAttack:
        try:
            for corner in self.search.corners():
                self.threat_model.check(corner)
        except InputError as error:
            raise ValueError(f"search.space allows more than the threat model does: {error}") from None
        if self.evaluate.restricted is None or self.validation.restricted is None:
            raise ValueError("evaluate.restricted: a search needs requests whose fulfilment is harm")
        for name in ("evaluate", "validation"):
            if not getattr(self, name).tells(self.search.utility):
                raise ValueError(
                    f"search.utility: nothing that `{name}` measures tells it (found {self.search.utility!r}, expected "
                    "ordinary prompts (--ordinary), for ordinary_accuracy also a reference judge, or for "
                    "finetune_accuracy a task)"
                )
        for part in self.validation.parts():
            if part.split == "heldout" and sources.source_of(part.source).kind != "file":
                raise ValueError(f"validation: {part.source} is the held-out split, which attackers cannot see")
        guard = self.search.attack.guard
        if (self.vector is not None) != (isinstance(guard, MountedVector) and guard.folder is None):
            raise ValueError(
                "a security vector is either trained here (`vector`) or named by its folder, and then guards"
            )
        return self

    def upstream(self) -> Sequence[Stage]:
        aligned = self.model if isinstance(self.model, Align) else None
        return tuple(stage for stage in (aligned, self.vector, self.control) if stage is not None)

    def inputs(self) -> Iterable[Input]:
        vector = self.vector.inputs() if self.vector is not None else ()
        attack = self.search.attack
        data = (attack.task, *((attack.harmful,) if attack.harmful is not None else ()))
        guard = (attack.guard,) if isinstance(attack.guard, MountedVector) else ()
        apart = (
            Apart.of(learned_by(self.model, self.vector, attack.guard), self.evaluate.parts()),
            Apart.of(data, self.validation.parts()),
            Apart.of((*data, *self.validation.parts()), self.evaluate.parts(), by="search"),
        )
        return (*inputs_of(self.model), *vector, *data, *guard, self.evaluate, self.validation, *apart)

    def fingerprints(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for corner in self.search.corners():
            found |= corner.mix().fingerprint()
        guard = self.search.attack.guard
        if isinstance(guard, MountedVector) and guard.folder is not None:
            found |= {guard.folder: tree_sha256(Path(guard.folder))}
        found |= evaluation_fingerprints(self.evaluate) | evaluation_fingerprints(self.validation)
        return found | model_fingerprint(self.model)

    def label(self) -> str:
        guard = self.search.attack.guard
        under = "" if guard is None else f" under {guard.name}"
        return f"search of {self.search.n_trials} attacks on {name_of(self.model)}{under}"

    def provenance(self) -> Record:
        guard = self.search.attack.guard
        return replace(
            origin(self.model),
            guard="" if guard is None else guard.name,
            guard_params=guard_params(self.search.attack) | (self.vector.vector.params() if self.vector else {}),
            threat_model=self.threat_model.name,
            stage=self.folder,
        )

    def finetune(self, setting: Setting, upstream: Mapping[str, Path]) -> Finetune:
        """The attack that a setting stands for, its guard's vector in the place where it was made."""
        attack = self.search.finetune(setting)
        if self.vector is None:
            return attack
        guard = MountedVector(folder=str(upstream[self.vector.folder]))
        return attack.model_copy(update={"guard": guard})

    def run(self, out: Path, upstream: Mapping[str, Path], context: Context) -> str:
        bench = Bench(self, upstream, context)
        before = bench.before(out)
        bound = self._bound(before["validation"], upstream)
        with study_of(self, out, context) as study:
            write_json(out / BOUND, asdict(bound))  # the sign that others may join
            study.warm_up((*self.search.warm_starts, *self._inherited(upstream)))
            while left := study.left():
                if context.workers > 1:
                    work_side_by_side(self, out, upstream, context, study.left)
                else:
                    bench.work(study, bound)
                if study.left() < left:
                    continue
                if not study.elsewhere():
                    raise StageError("no trial came to an end: its processes died (out of memory, or killed)")
                time.sleep(0.5)  # the last ones are with processes that joined in
            told = study.told()
        finals = bench.finals(out, told)
        chosen = bench.choose(out, told, finals)
        again = bench.again(out, chosen.setting)
        blank = replace(self.provenance(), recipe=context.recipe)
        control = None if self.control is None else self.control.folder
        rows = search_records(self.search, blank, bound, before, told, finals, chosen, again, control)
        write_records(out / "records.jsonl", rows)
        write_responses(out, telling_responses(again, bound))
        replay = replay_recipe(self, self.search.again(chosen.setting, "rerun", 0), chosen.setting)
        (out / REPLAY).write_text(replay, encoding="utf-8")
        bench.clear(out)
        return "ok"

    def assist(self, out: Path, upstream: Mapping[str, Path], context: Context) -> None:
        """Carry out trials beside the process that leads this search."""
        try:
            bound = read_bound(out)
        except (OSError, ValueError):
            return  # it has not begun, or it is over
        with study_of(self, out, context) as study:
            if study.left():
                Bench(self, upstream, context).work(study, bound)

    def _bound(self, before: Sequence[dict[str, Any]], upstream: Mapping[str, Path]) -> Bound:
        """Utility is measured by the undefended model's, where there is one: a defense may not lower its own bar."""
        reference = next(row["value"] for row in before if row["metric"] == "utility")
        if self.control is not None:
            rows = read_records(upstream[self.control.folder] / "records.jsonl")
            reference = next(row.value for row in rows if (row.metric, row.attack) == ("utility", "none"))
        return Bound(self.search.break_threshold, self.search.min_utility * (reference or 0.0))

    def _inherited(self, upstream: Mapping[str, Path]) -> list[Setting]:
        """What broke the undefended model, as far as it lies in this space."""
        if self.control is None:
            return []
        about = json.loads((upstream[self.control.folder] / CHOSEN).read_text(encoding="utf-8"))
        setting = Setting(**{name: value for name, value in about.items() if name != "trial"})
        return [setting] if self.search.space.holds(setting) else []
