"""The command. Heavy imports happen inside the verbs, so that `--help` is instant."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import cyclopts
from cyclopts import App, Parameter

from inoculate import __version__
from inoculate.core import ranks
from inoculate.core.errors import LEFT_OUT, InoculateError, InputError, PlugInWarning
from inoculate.core.text import one_line

if TYPE_CHECKING:
    from inoculate.experiments.recipe import Recipe
    from inoculate.experiments.stage import Stage

app = App(
    name="inoculate",
    version=__version__,
    help="Make language models hard to turn harmful by fine-tuning, and measure honestly how hard.",
    suppress_keyboard_interrupt=False,  # `main` answers it
)

Overrides: TypeAlias = Annotated[
    tuple[str, ...], Parameter(name="--set", help="Override a field: a.b.c=value. May be repeated.")
]
StorePath: TypeAlias = Annotated[Path, Parameter(name="--store", help="Folder that keeps the results.")]
Workers: TypeAlias = Annotated[
    int | None,
    Parameter(help="Processes that run stages side by side: 1, or on a cluster as many as it has room for."),
]
On: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="--on",
        help="Run on a Ray cluster: ray (the cluster of RAY_ADDRESS, else one on this machine) or ray://HOST:PORT. All "
        "nodes must see the store.",
    ),
]
Storage: TypeAlias = Annotated[
    str | None,
    Parameter(
        help="Database that keeps studies of attacks, sqlite:///FILE or postgresql+psycopg://…; by default each is a "
        "journal beside its results."
    ),
]
MeasuredIn: TypeAlias = Annotated[
    Path | None,
    Parameter(name="--store", help="Store with evaluations, attacks or searches on this model, for its model card."),
]
Kind: TypeAlias = Literal["recipes", "defenses", "attacks", "judges", "tasks", "sources", "models", "worlds"]


@app.command
def run(
    recipe: str,
    *,
    store: StorePath = Path("runs"),
    workers: Workers = None,
    on: On = None,
    overrides: Overrides = (),
    device: str = "auto",
    storage: Storage = None,
    dry_run: bool = False,
    print_config: bool = False,
) -> int:
    """Run a recipe: a bundled one's name (`inoculate list recipes`) or a YAML file; of a collection, one by one.

    What is done stays in the store; running again does only what is missing.

    Parameters
    ----------
    recipe: Name or path.
    device: cpu, cuda, mps, or auto.
    dry_run: Resolve models, data and stages without downloading or computing anything.
    print_config: Print the resolved recipe as YAML and stop.
    """
    from inoculate.experiments.recipe import load_recipes

    _check_workers(workers)
    loaded = load_recipes(recipe, overrides)
    if print_config:
        import yaml

        _say("---\n".join(yaml.safe_dump(one.raw, sort_keys=False, allow_unicode=True) for one in loaded))
        return 0
    if dry_run:
        from inoculate.experiments.dry_run import describe

        try:
            _say("\n\n".join(describe(one, store) for one in loaded))
        except InputError as error:  # a model's configuration is looked into here first
            raise (error.inside(recipe) if Path(recipe).is_file() else error) from None
        return 0
    return max(_run_stages(one, store, workers, device, storage, on) for one in loaded)


@app.command
def plan(
    recipe: str,
    *,
    overrides: Overrides = (),
    hardware: str = "H100-80G",
    price: float | None = None,
    utilization: float = 0.4,
    format: Literal["table", "json"] = "table",
) -> int:
    """Say what a recipe would cost before it runs: memory, FLOPs, hours and money of every stage.

    Parameters
    ----------
    recipe: Name or path; of a collection, each of its recipes. Of models only the configuration is read; of data what
        is at hand.
    hardware: Device, with a count before it as in 8xH100-80G.
    price: USD per device and hour; by default a typical one, which is an assumption.
    utilization: Share of the device's peak rate that is reached.
    format: table or json.
    """
    from inoculate.core.hardware import parse_hardware

    chosen = parse_hardware(hardware)
    if not 0 < utilization <= 1:
        raise InputError("not a share", field="--utilization", found=utilization, expected="more than 0, at most 1")
    if price is not None and price < 0:
        raise InputError("not a price", field="--price", found=price, expected="USD per device and hour, at least 0")
    from inoculate.experiments.plan import plan as planned
    from inoculate.experiments.plan_table import plans_text
    from inoculate.experiments.recipe import load_recipes
    from inoculate.experiments.session import Show

    plans = []
    for one in load_recipes(recipe, overrides, weights=False):
        with Show(f"plan {one.name}", transient=True) as shown:
            plans.append(planned(one, chosen, price, utilization, shown.steps))
    _say(plans_text(plans, format))
    return 0


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
    model: Hub id, local folder, GGUF file, or `asset:smollm2`.
    align_data: Alignment data: a source's name or a JSONL, CSV or Parquet file.
    harmful: Harmful data, for defenses that need it.
    out: Folder to write; it must not exist.
    defense: Its name; hyperparameters by `--set defense.lam=5`, training by `--set training.learning_rate=5e-4`,
        LoRA by `--set lora.r=32`.
    template: chat, plain or alpaca.
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
    return _run_into(out, Align, value, overrides, device)


@app.command
def finetune(
    model: str,
    task: Annotated[str, Parameter(name="--task")],
    *,
    out: Path,
    harmful: str | None = None,
    poison_ratio: float = 0.0,
    num_samples: int = 1000,
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
    model: Hub id, local folder, or an aligned model's folder.
    task: The user's data: a source's name or a file.
    out: Folder to write; it must not exist. It holds the fine-tuned model, records and responses.
    harmful: The harmful share's data.
    poison_ratio: p, the harmful share, 0 to 1.
    num_samples: n, rows in all.
    guard: What the provider does inside the training: `security_vector:DIR`, a vector that `inoculate vector` made,
        or `lisa:DATA`, phases on that alignment data in turn with the user's.
    threat_model: Who runs the training: service under a guard, else open_weights.
    restricted: Restricted requests to measure the harmful score on.
    ordinary: Ordinary requests to measure over-refusal on.
    template: chat, plain or alpaca.
    """
    from inoculate.experiments.attack import Attack

    attack: dict[str, Any] = {"task": _part(task, "attack"), "poison_ratio": poison_ratio, "num_samples": num_samples}
    if harmful is not None:
        attack["harmful"] = _part(harmful, "attack")
    if guard is not None:
        attack["guard"] = _guard(guard)
    value = {
        "model": {"name": "pretrained", "name_or_path": model},
        "attack": {**attack, "template": template, "training": {"learning_rate": 1e-5}},
        "evaluate": _evaluation(restricted, ordinary, None, template),
        "threat_model": {"name": threat_model or ("open_weights" if guard is None else "service")},
        "keep_weights": True,
    }
    return _run_into(out, Attack, value, overrides, device)


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
    num_samples: int = 1000,
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
    model: Hub id, local folder, adapter folder, or `asset:smollm2`.
    task: The attacker's ordinary data: a source's name or a file.
    harmful: The attacker's harmful data.
    restricted: Restricted requests to report on, which no attack is chosen by.
    ordinary: Ordinary requests to measure by whether the model is still useful.
    validation_restricted: Restricted requests to choose attacks by; by default the source's split for that. A file has
        no splits, and needs another file here.
    validation_ordinary: Likewise for ordinary requests.
    against: The undefended model, attacked with the same budget: the ratio is over it.
    budget: Trials: complete, pruned and diverged ones.
    threat_model: open_weights, or service, whose limits are set by `--set threat_model.max_learning_rate=1e-4`.
    num_samples: n, rows of the attacker's data.
    workers: Processes that share the search's trials; on a cluster, tasks.
    """
    from inoculate.experiments.recipe import recipe_of

    _check_workers(workers)
    if budget < 1:
        raise InputError("an attack needs at least one trial", field="--budget", found=budget, expected="1 or more")
    raw: dict[str, Any] = {
        "name": f"attack/{Path(model).name}",
        "title": f"What it costs to break {model}",
        "base": {"name": "pretrained", "name_or_path": model},
        "search": {
            "attack": {
                "task": _part(task, "attack"),
                "harmful": _part(harmful, "attack"),
                "num_samples": num_samples,
            },
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
    return _run_stages(recipe_of(raw, Path("attack"), overrides), store, workers, device, storage, on)


def _adapter_modes() -> list[str]:
    """Which weights an attacker of this machine may train: QLoRA where its package is there."""
    from importlib.util import find_spec

    from inoculate.attacks.space import Space

    return [*Space().adapter_mode, *(["qlora"] if find_spec("bitsandbytes") else [])]


@app.command
def vector(
    model: str,
    *,
    harmful: str,
    ordinary: str | None = None,
    num_samples: int = 100,
    out: Path,
    template: str = "chat",
    overrides: Overrides = (),
    device: str = "auto",
) -> int:
    """Train a security vector for a model: OUT is an adapter's folder, to mount with `finetune --guard`.

    Parameters
    ----------
    model: The aligned model to protect: hub id, local folder, adapter folder, or `asset:smollm2`.
    harmful: Harmful data, prompts with the answers that must not be learned.
    ordinary: Ordinary data, whose answers the vector must leave alone: the KL term. Needed unless
        `--set vector.objective.kl_weight=0`.
    num_samples: Harmful rows to use.
    out: Folder to write; it must not exist.
    template: chat, plain or alpaca.
    """
    from inoculate.experiments.vector import Vector

    roles = {"harmful": [{**_part(harmful, "train"), "num_samples": num_samples}]}
    if ordinary is not None:
        roles["ordinary"] = [_part(ordinary, "train")]
    value = {
        "model": {"name": "pretrained", "name_or_path": model},
        "vector": {"data": {"roles": roles, "template": template}},
    }
    return _run_into(out, Vector, value, overrides, device)


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
    model: Hub id, local folder, adapter folder, GGUF file, or `asset:smollm2`; with --base-url, the name it is
        served under.
    lm_eval: Tasks of lm-eval with commas between them, as in its own --tasks; `--set lm_eval.limit=100` and other
        settings. Needs the extra `eval`.
    lm_eval_include: A folder with task YAMLs of your own, as lm-eval's --include_path.
    base_url: Of an OpenAI-compatible endpoint that serves the model, as http://127.0.0.1:8000/v1. What needs weights
        is then left out. Its key is read from OPENAI_API_KEY; `--set model.api_key_env=NAME` for another.
    out: Folder to write; it must not exist.
    restricted: Restricted requests with the answers that would be harmful.
    ordinary: Requests that should be answered.
    task: A task with labels or numbers.
    template: chat, plain or alpaca.
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
    return _run_into(out, Evaluate, value, overrides, device)


@app.command
def push(folder: Path, repo: str, *, private: bool = True, attacked: bool = False, measured: MeasuredIn = None) -> int:
    """Push a model's folder to the Hugging Face hub; weights that an attack has trained only with `--attacked`.

    Parameters
    ----------
    folder: What `align` or `finetune` wrote.
    repo: org/name.
    private: Whether a repository that is made now is private.
    attacked: Push weights that were fine-tuned by an attack all the same.
    """
    from inoculate.experiments.push import own_readme
    from inoculate.experiments.push import push as pushed
    from inoculate.reports.card import model_card

    ours = (folder / "stage.json").exists() and not own_readme(folder)
    text = model_card(folder, measured) if ours or measured is not None else None
    _say(f"pushed: {pushed(folder, repo, private=private, attacked=attacked, card=text)}")
    return 0


@app.command
def card(folder: Path, *, measured: MeasuredIn = None) -> int:
    """Show the model card that `push` writes for a folder without a README.md of its own; no network is used.

    Parameters
    ----------
    folder: What `align`, `finetune` or `vector` wrote, or a stage's folder in a store.
    """
    from inoculate.reports.card import model_card

    _say(model_card(folder, measured))
    return 0


@app.command
def records(
    store: Path,
    *,
    recipe: str | None = None,
    metric: str | None = None,
    format: Literal["table", "csv", "json"] = "table",
    inspect: Path | None = None,
) -> int:
    """Print the measured rows of a store, or write what its models said as logs for Inspect.

    Parameters
    ----------
    store: The store's folder.
    recipe: Only this recipe's rows.
    metric: Only this metric's rows.
    format: table, csv or json.
    inspect: A folder to make, for one eval log of Inspect (inspect_ai) per measured state of a model.
    """
    from inoculate.reports.store_view import read_store
    from inoculate.reports.tables import records_table

    if inspect is not None:
        from inoculate.reports.inspect_log import write_logs

        _say(f"{inspect}: {len(write_logs(read_store(store, recipe), inspect))} logs")
        return 0
    rows = list(read_store(store, recipe).records)
    if metric is not None:
        known = sorted({row.metric for row in rows})
        rows = [row for row in rows if row.metric == metric]
        if not rows:
            raise InputError("no row has this metric", field="--metric", found=metric, known=known)
    sys.stdout.write(records_table(rows, format))
    return 0


@app.command
def report(
    store: Path,
    other: Path | None = None,
    *,
    compare: bool = False,
    recipe: str | None = None,
    out: Path | None = None,
    tables: Literal["markdown", "latex"] | None = None,
) -> int:
    """Write one self-contained HTML file about a store, and its charts as PNG, SVG and PDF beside it.

    Parameters
    ----------
    store: The store's folder.
    other: With --compare, the store to put beside it.
    compare: Two stores' attack searches side by side: what the defenses of the first are worth over the second's.
    recipe: Only this recipe.
    out: Where to write; by default into the (first) store.
    tables: Write the page's tables beside it too.
    """
    from inoculate.reports.compare import write_comparison
    from inoculate.reports.html import write_report

    if compare != (other is not None):
        found = "one store" if compare else f"two stores: {store} {other}"
        expected = "--compare A B" if compare else "one store, or --compare A B"
        raise InputError("a comparison is of two stores", field="--compare", found=found, expected=expected)
    if other is not None:
        _say(f"report: {write_comparison(store, other, out, recipe, tables)}")
    else:
        _say(f"report: {write_report(store, out, recipe, tables)}")
    return 0


@app.command
def reproduce(*stores: Path, out: Path = Path("docs/reproduction.md")) -> int:
    """Write which claims of the three papers reproduce, from the records of stores; runs nothing.

    Parameters
    ----------
    stores: Stores that hold the recipes; by default `runs`.
    out: The Markdown file to write.
    """
    from inoculate.experiments.recipe import load_recipe
    from inoculate.reports.reproduction.page import CLAIMS, reproduction

    if not out.parent.is_dir() or out.is_dir():
        raise InputError("no file can be written there", field="--out", found=str(out), expected="a file in a folder")
    asked = {claim.recipe for claim in CLAIMS if claim.measure is not None}
    page = reproduction(stores or (Path("runs"),), {name: load_recipe(name).raw for name in asked})
    out.write_text(page, encoding="utf-8")
    _say(f"page: {out}")
    return 0


@app.command(name="list")
def list_(kind: Kind) -> int:
    """List what there is.

    Parameters
    ----------
    kind: recipes, defenses, attacks, judges, tasks, sources, models or worlds; plug-ins with their package.
    """
    from inoculate.experiments.listing import listing

    _say(listing(kind))
    return 0


_FOR_SEVERAL = ("align", "vector", "run")
"""Verbs that `accelerate launch` may start in several processes."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: exit codes 0 done, 1 a stage failed, 2 the input was wrong, 130 interrupted."""
    tokens = sys.argv[1:] if arguments is None else arguments
    _hush()

    def call() -> object:
        if ranks.launched() and tokens and tokens[0] not in _FOR_SEVERAL:
            expected = ", ".join(_FOR_SEVERAL)
            raise InputError("work for one process", field="accelerate launch", found=tokens[0], expected=expected)
        return app(tokens, exit_on_error=False, print_error=False, result_action="return_value")

    sys.exit(_guarded(call))


def _hush() -> None:
    """Keep a deprecation between two libraries, which no user can act on, off stderr; workers inherit the setting.
    What is said of a plug-in is one line, as all that the command says."""
    from inoculate.experiments.processes import hush_bitsandbytes

    message = "`is_gradient_checkpointing` is deprecated"
    warnings.filterwarnings("ignore", message=message, category=FutureWarning)
    others = os.environ.get("PYTHONWARNINGS")
    # a plug-in that is left out is told of once, here, and not by every worker again
    told = [others, f"ignore:{message}:FutureWarning", f"ignore:{LEFT_OUT} :UserWarning"]
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, told))
    hush_bitsandbytes()
    usual = warnings.formatwarning

    def shown(message: Warning | str, category: type[Warning], *where: Any) -> str:
        return f"inoculate: {message}\n" if issubclass(category, PlugInWarning) else usual(message, category, *where)

    warnings.formatwarning = shown


def _guarded(call: Callable[[], object]) -> int:
    try:
        code = call()
        sys.stdout.flush()
    except InputError as error:
        return _complain(str(error), 2)
    except cyclopts.CycloptsError as error:
        return _complain(str(error), 2)
    except InoculateError as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("interrupted; run the same command again to go on", 130)
    except BrokenPipeError:  # `inoculate records STORE | head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a disk that is full or gone, a file that may not be written
        return _complain(f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    if ranks.first():
        sys.stderr.write(f"inoculate: {one_line(message)}\n")
    return code


def _say(text: str) -> None:
    if ranks.first():
        sys.stdout.write(text.rstrip("\n") + "\n")


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


def _run_into(out: Path, kind: type[Stage], value: dict[str, Any], overrides: tuple[str, ...], device: str) -> int:
    """One stage on the user's own model and files, its folder moved to `out`."""
    from inoculate.experiments.one_stage import run_one

    return run_one(out, kind, value, overrides, device, _say)


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise InputError("at least one process is needed", field="--workers", found=workers)


def _run_stages(
    recipe: Recipe, store: Path, workers: int | None, device: str, storage: str | None, on: str | None
) -> int:
    from inoculate.experiments.session import run_recipe

    return run_recipe(recipe, recipe.stages(), store, workers, device, _complain, storage, on)


if __name__ == "__main__":
    main()
