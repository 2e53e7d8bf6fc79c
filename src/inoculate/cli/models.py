"""Verbs on a user's own model and files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from inoculate.cli.app import (
    On,
    Overrides,
    Storage,
    StorePath,
    Workers,
    app,
    check_workers,
    run_into,
    run_stages,
)
from inoculate.cli.rows import ATTACKERS, PROVIDERS, Rows
from inoculate.core.errors import InputError
from inoculate.core.lineage import mapping


@app.command
def align(
    model: str,
    align_data: Annotated[str, Parameter(name="--align")],
    *,
    out: Path,
    harmful: str | None = None,
    defense: str = "sft",
    template: str = "chat",
    overrides: Overrides = (),
    device: str = "auto",
) -> int:
    """Align a model with a defense; OUT is a folder that Hugging Face loads.

    Parameters
    ----------
    model
        Hub id, local folder, GGUF file, or `asset:smollm2`.
    align_data
        Alignment data: a source's name or a JSONL, CSV or Parquet file.
    harmful
        Harmful data, for defenses that need it.
    out
        Folder to write; it must not exist.
    defense
        Its name; hyperparameters by `--set defense.lam=5`, training by `--set training.learning_rate=5e-4`,
        LoRA by `--set lora.r=32`.
    template
        chat, plain or alpaca.
    """
    from inoculate.experiments.align import Align

    roles = {"align": [_part(align_data, "train")]}
    if harmful is not None:
        roles["harmful"] = [_part(harmful, "train")]
    value = {
        "base": {"name": "pretrained", "name_or_path": model},
        "defense": {"name": defense},
        "data": {"roles": roles, "template": template},
        "training": {},
    }

    def complete(value: dict[str, Any]) -> None:
        made = Align.model_validate(value)
        if harmful is not None and "harmful" not in made.roles:
            expected = "a defense that learns from harmful data (--defense booster), or no such data"
            raise InputError(
                "these data would not be used", field="--harmful", found=made.defense.name, expected=expected
            )

    return run_into(out, Align, value, overrides, device, complete)


@app.command
def finetune(
    model: str,
    task: Annotated[str, Parameter(name="--task")],
    *,
    out: Path,
    harmful: str | None = None,
    poison_ratio: float = 0.0,
    num_samples: int | None = None,
    guard: str | None = None,
    threat_model: Literal["open_weights", "service"] | None = None,
    restricted: str | None = None,
    ordinary: str | None = None,
    template: str = "chat",
    overrides: Overrides = (),
    device: str = "auto",
) -> int:
    """Fine-tune a model on a user's data, a share of it harmful, and measure it along the way.

    Parameters
    ----------
    model
        Hub id, local folder, or an aligned model's folder.
    task
        The user's data: a source's name or a file.
    out
        Folder to write; it must not exist. It holds the fine-tuned model, records and responses.
    harmful
        The harmful share's data.
    poison_ratio
        p, the harmful share, 0 to 1.
    num_samples
        n, rows in all; by default 1000, or as many as there are.
    guard
        What the provider does inside the training: `security_vector:DIR`, a vector that `inoculate vector` made,
        or `lisa:DATA`, phases on that alignment data in turn with the user's.
    threat_model
        Who runs the training: service under a guard, else open_weights.
    restricted
        Restricted requests to measure the harmful score on.
    ordinary
        Ordinary requests to measure over-refusal on.
    template
        chat, plain or alpaca.
    """
    from inoculate.experiments.attack import Attack

    data = {"task": _part(task, "attack"), **({} if harmful is None else {"harmful": _part(harmful, "attack")})}
    attack = {**data, "poison_ratio": poison_ratio, **_asked(num_samples)}
    if guard is not None:
        attack["guard"] = _guard(guard)
    value = {
        "model": {"name": "pretrained", "name_or_path": model},
        "attack": {**attack, "template": template, "training": {"learning_rate": 1e-5}},
        "evaluate": _evaluation(restricted, ordinary, None, template),
        "threat_model": {"name": threat_model or ("open_weights" if guard is None else "service")},
        "keep_weights": True,
    }
    rows = Rows(ATTACKERS)

    def complete(value: dict[str, Any]) -> None:
        if harmful is not None and not value["attack"]["poison_ratio"]:
            expected = "--poison-ratio above 0, their share of the rows"
            raise InputError("these data would not be used", field="--harmful", found=harmful, expected=expected)
        rows.of_attack(value["attack"], [value["attack"]["poison_ratio"]])

    return rows.noted(run_into(out, Attack, value, overrides, device, complete))


@app.command
def attack(
    model: str,
    task: Annotated[str, Parameter(name="--task")],
    *,
    harmful: str,
    restricted: str,
    ordinary: str | None = None,
    validation_restricted: str | None = None,
    validation_ordinary: str | None = None,
    against: str | None = None,
    budget: int = 50,
    threat_model: Literal["open_weights", "service"] = "open_weights",
    num_samples: int | None = None,
    store: StorePath = Path("runs"),
    workers: Workers = None,
    on: On = None,
    storage: Storage = None,
    overrides: Overrides = (),
    device: str = "auto",
) -> int:
    """Search for the fine-tuning attack that makes a model harmful and still useful for the least cost.

    The worst attack is run again with fresh seeds on held-out prompts. `inoculate report STORE` shows what it cost.

    Parameters
    ----------
    model
        Hub id, local folder, adapter folder, or `asset:smollm2`.
    task
        The attacker's ordinary data: a source's name or a file.
    harmful
        The attacker's harmful data.
    restricted
        Restricted requests to report on, which no attack is chosen by.
    ordinary
        Ordinary requests to measure by whether the model is still useful. Needed unless another utility is set.
    validation_restricted
        Restricted requests to choose attacks by; by default the source's split for that. A file has
        no splits, and needs another file here.
    validation_ordinary
        Likewise for ordinary requests.
    against
        The undefended model, attacked with the same budget: the ratio is over it.
    budget
        Trials: complete, pruned and diverged ones.
    threat_model
        open_weights, or service, whose limits are set by `--set threat_model.max_learning_rate=1e-4`.
    num_samples
        n, rows of the attacker's data; by default 1000, or as many as there are for every poison ratio.
    """
    from inoculate.attacks.space import Space
    from inoculate.experiments.base import Pretrained
    from inoculate.experiments.recipe import parse_override, recipe_of, set_field

    check_workers(workers)
    if budget < 1:
        raise InputError("an attack needs at least one trial", field="--budget", found=budget, expected="1 or more")
    data = {"task": _part(task, "attack"), "harmful": _part(harmful, "attack")}
    raw: dict[str, Any] = {
        "name": f"attack/{Path(model).name}",
        "title": f"What it costs to break {model}",
        "base": {"name": "pretrained", "name_or_path": model},
        "search": {
            "attack": {**data, **_asked(num_samples)},
            "space": {"adapter_mode": _adapter_modes()},
            "n_trials": budget,
            "utility": "answered_rate",
        },
        "evaluate": _evaluation(restricted, ordinary, None, "chat"),
        "threat_model": {"name": threat_model},
    }
    if against is not None:
        raw["undefended"] = {"name": "pretrained", "name_or_path": against}
    if validation_restricted is not None or validation_ordinary is not None:
        own = _evaluation(validation_restricted or restricted, validation_ordinary or ordinary, None, "chat")
        for part in ("restricted", "ordinary"):
            own.get(part, {})["split"] = "validation"
        raw["validation"] = own
    for override in overrides:
        set_field(raw, *parse_override(override), file="--set")
    _stay_within(mapping(raw.get("threat_model")), mapping(raw.get("search")).get("space"))
    rows = Rows(ATTACKERS)

    def complete(raw: dict[str, Any]) -> None:
        for model in (raw["base"], raw.get("undefended") or {}):
            if model.get("name") == "pretrained":
                Pretrained.model_validate(model).check()
        search = raw["search"]
        rows.of_attack(search["attack"], search.get("space", {}).get("poison_ratio", Space().poison_ratio))

    recipe = recipe_of(raw, Path("attack"), overrides, complete=complete)
    return rows.noted(run_stages(recipe, store, workers, device, storage, on))


@app.command
def vector(
    model: str,
    *,
    harmful: str,
    ordinary: str | None = None,
    num_samples: int | None = None,
    out: Path,
    template: str = "chat",
    overrides: Overrides = (),
    device: str = "auto",
) -> int:
    """Train a security vector for a model: OUT is an adapter's folder, to mount with `finetune --guard`.

    Parameters
    ----------
    model
        The aligned model to protect: hub id, local folder, adapter folder, or `asset:smollm2`.
    harmful
        Harmful data, prompts with the answers that must not be learned.
    ordinary
        Ordinary data, whose answers the vector must leave alone: the KL term. Needed unless
        `--set vector.objective.kl_weight=0`.
    num_samples
        Harmful rows to use; by default 100, or as many as there are.
    out
        Folder to write; it must not exist.
    template
        chat, plain or alpaca.
    """
    from inoculate.experiments.vector import Vector

    bad = {**_part(harmful, "train"), **_asked(num_samples)}
    roles = {"harmful": [bad]}
    if ordinary is not None:
        roles["ordinary"] = [_part(ordinary, "train")]
    value = {
        "model": {"name": "pretrained", "name_or_path": model},
        "vector": {"data": {"roles": roles, "template": template}},
    }
    rows = Rows(PROVIDERS)
    return rows.noted(run_into(out, Vector, value, overrides, device, lambda _: rows.of_part(bad)))


@app.command
def evaluate(
    model: str,
    *,
    out: Path,
    restricted: str | None = None,
    ordinary: str | None = None,
    task: str | None = None,
    lm_eval: str | None = None,
    lm_eval_include: Path | None = None,
    base_url: str | None = None,
    template: str = "chat",
    overrides: Overrides = (),
    device: str = "auto",
) -> int:
    """Measure a model: harmful score, over-refusal, task accuracy.

    Parameters
    ----------
    model
        Hub id, local folder, adapter folder, GGUF file, or `asset:smollm2`; with --base-url, the name it is
        served under.
    lm_eval
        Tasks of lm-eval with commas between them, as in its own --tasks; `--set lm_eval.limit=100` and other
        settings. Needs the extra `eval`.
    lm_eval_include
        A folder with task YAMLs of your own, as lm-eval's --include_path.
    base_url
        Of an OpenAI-compatible endpoint that serves the model, as http://127.0.0.1:8000/v1. What needs weights
        is then left out. Its key is read from OPENAI_API_KEY; `--set model.api_key_env=NAME` for another.
    out
        Folder to write; it must not exist.
    restricted
        Restricted requests with the answers that would be harmful.
    ordinary
        Requests that should be answered.
    task
        A task with labels or numbers.
    template
        chat, plain or alpaca.
    """
    from inoculate.experiments.attack import Evaluate

    if lm_eval_include is not None and lm_eval is None:
        raise InputError("a folder of tasks, and none is asked for", field="--lm-eval-include", expected="--lm-eval")
    if (restricted, ordinary, task, lm_eval) == (None,) * 4:
        raise InputError("nothing to measure", expected="--restricted, --ordinary, --task or --lm-eval")
    served = {"name": "served", "base_url": base_url, "model": model}
    value = {
        "model": {"name": "pretrained", "name_or_path": model} if base_url is None else served,
        "evaluate": _evaluation(restricted, ordinary, task, template),
    }
    if lm_eval is not None:
        folder = None if lm_eval_include is None else str(lm_eval_include)
        value["lm_eval"] = {"tasks": [name.strip() for name in lm_eval.split(",")], "include_path": folder}
    return run_into(out, Evaluate, value, overrides, device)


def _adapter_modes() -> list[str]:
    """Which weights an attacker of this machine may train: QLoRA where its package is there."""
    from importlib.util import find_spec

    from inoculate.attacks.space import Space

    return [*Space().adapter_mode, *(["qlora"] if find_spec("bitsandbytes") else [])]


def _stay_within(limits: Mapping[str, Any], space: Any) -> None:
    """Let a service's limit end the range of learning rates that is searched where nobody gives one."""
    from inoculate.attacks.space import Space

    try:
        limit = float(limits["max_learning_rate"])  # 1e-4 is a text in YAML
    except (KeyError, TypeError, ValueError):
        return  # there is none, or it is refused where the threat model is read
    if limit > 0 and isinstance(space, dict) and "learning_rate" not in space:
        low, high = Space().learning_rate
        space["learning_rate"] = [min(low, limit / 1000), min(high, limit)]


def _asked(num_samples: int | None) -> dict[str, int]:
    return {} if num_samples is None else {"num_samples": num_samples}


def _part(source: str, split: str) -> dict[str, Any]:
    return {"source": source, "split": split}


def _guard(text: str) -> dict[str, Any]:
    name, _, argument = text.partition(":")
    known = ("security_vector", "lisa")
    if name not in known or not argument:
        raise InputError(
            "not a guard", field="--guard", found=text, expected="security_vector:DIR or lisa:DATA", known=known
        )
    return {"name": name, **({"guide": [_part(argument, "train")]} if name == "lisa" else {"folder": argument})}


def _evaluation(restricted: str | None, ordinary: str | None, task: str | None, template: str) -> dict[str, Any]:
    named = {"restricted": restricted, "ordinary": ordinary, "task": task}
    parts = {name: _part(source, "heldout") for name, source in named.items() if source is not None}
    return {**parts, "template": template}
