"""The chosen attack as a recipe of its own, for anyone to run again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from inoculate.attacks.space import Setting
from inoculate.experiments.align import Align

if TYPE_CHECKING:
    from inoculate.experiments.search import SearchAttack


def replay_recipe(stage: SearchAttack, rerun: Setting, chosen: Setting) -> str:
    """A recipe whose one attack is the search's first re-run, measured at the same steps on the same prompts.

    Models are aligned anew as the recipe of the search says, or taken from the address that was attacked.
    """
    from inoculate.experiments.search_bench import measured_at

    attack = stage.search.finetune(rerun)
    line: dict[str, Any] = {
        "name": f"replay-{stage.folder}",
        "title": f"The worst of {stage.search.n_trials} attacks, again",
        "description": f"What the search {stage.folder} chose: {chosen.model_dump_json(exclude_none=True)}. "
        "Local files and folders are named as they were given: run it where those names hold.",
    }
    if isinstance(stage.model, Align):
        align = stage.model
        line["base"] = align.base.model_dump(mode="json")
        fields = align.model_dump(mode="json", include={"defense", "data", "training", "lora"})
        line["align"] = {name: value for name, value in fields.items() if value is not None}
    else:
        line["base"] = stage.model.model_dump(mode="json")
    if stage.vector is not None:
        line["vector"] = stage.vector.vector.model_dump(mode="json")
    evaluate = stage.evaluate.model_copy(update={"template": rerun.template})
    line |= {
        "attack": attack.model_dump(mode="json"),
        "evaluate": evaluate.model_dump(mode="json"),
        "threat_model": stage.threat_model.model_dump(mode="json"),
        "eval_at": list(measured_at(stage.search, rerun.max_steps, finer=True)),
        "break_threshold": stage.search.break_threshold,
    }
    return yaml.safe_dump(line, sort_keys=False, allow_unicode=True)
