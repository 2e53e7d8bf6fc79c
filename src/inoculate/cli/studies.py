"""Verbs on recipes and on what they left in a store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from inoculate.cli.app import (
    Kind,
    On,
    Overrides,
    Storage,
    StorePath,
    Workers,
    app,
    check_workers,
    run_stages,
    say,
)
from inoculate.core.errors import InputError


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
    recipe
        Name or path.
    device
        cpu, cuda, mps, or auto.
    dry_run
        Resolve models, data and stages without downloading or computing anything.
    print_config
        Print the resolved recipe as YAML and stop.
    """
    from inoculate.experiments.recipe import load_recipes

    check_workers(workers)
    loaded = load_recipes(recipe, overrides)
    if print_config:
        import yaml

        say("---\n".join(yaml.safe_dump(one.raw, sort_keys=False, allow_unicode=True) for one in loaded))
        return 0
    if dry_run:
        from inoculate.experiments.dry_run import describe

        try:
            say("\n\n".join(describe(one, store) for one in loaded))
        except InputError as error:  # a model's configuration is looked into here first
            raise (error.inside(recipe) if Path(recipe).is_file() else error) from None
        return 0
    return max(run_stages(one, store, workers, device, storage, on) for one in loaded)


@app.command
def plan(
    recipe: str,
    *,
    overrides: Overrides = (),
    hardware: str = "H100-80G",
    parallel: Literal["ddp", "fsdp"] | None = None,
    price: float | None = None,
    utilization: float = 0.4,
    format: Literal["table", "json"] = "table",
) -> int:
    """Say what a recipe would cost before it runs: memory, FLOPs, hours and money of every stage.

    Parameters
    ----------
    recipe
        Name or path; of a collection, each of its recipes. Of models only the configuration is read; of data what
        is at hand.
    hardware
        Device, with a count before it as in 8xH100-80G.
    parallel
        Let the devices train one model together, as `accelerate launch` does: ddp divides the rows, fsdp the
        weights too. Without it they have a stage each.
    price
        USD per device and hour; by default a typical one, which is an assumption.
    utilization
        Share of the device's peak rate that is reached.
    format
        table or json.
    """
    from inoculate.core.hardware import parse_hardware

    chosen = parse_hardware(hardware)
    if not 0 < utilization <= 1:
        raise InputError("not a share", field="--utilization", found=utilization, expected="more than 0, at most 1")
    if parallel and chosen.count == 1:
        raise InputError(
            "one device shares with none", field="--hardware", found=hardware, expected=f"as in 8x{hardware}"
        )
    if price is not None and price < 0:
        raise InputError("not a price", field="--price", found=price, expected="USD per device and hour, at least 0")
    from inoculate.experiments.plan import plan as planned
    from inoculate.experiments.plan_table import plans_text
    from inoculate.experiments.recipe import load_recipes
    from inoculate.experiments.session import Show

    plans = []
    for one in load_recipes(recipe, overrides, weights=False):
        with Show(f"plan {one.name}", transient=True) as shown:
            plans.append(planned(one, chosen, price, utilization, shown.steps, parallel))
    say(plans_text(plans, format))
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
    store
        The store's folder.
    recipe
        Only this recipe's rows.
    metric
        Only this metric's rows.
    format
        table, csv or json.
    inspect
        A folder to make, for one eval log of Inspect (inspect_ai) per measured state of a model.
    """
    from inoculate.reports.store_view import read_store
    from inoculate.reports.tables import records_table

    if inspect is not None:
        from inoculate.reports.inspect_log import write_logs

        say(f"{inspect}: {len(write_logs(read_store(store, recipe), inspect))} logs")
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
    store
        The store's folder.
    other
        With --compare, the store to put beside it.
    compare
        Two stores' attack searches side by side: what the defenses of the first are worth over the second's.
    recipe
        Only this recipe.
    out
        Where to write; by default into the (first) store.
    tables
        Write the page's tables beside it too.
    """
    from inoculate.reports.compare import write_comparison
    from inoculate.reports.html import write_report

    if compare != (other is not None):
        found = "one store" if compare else f"two stores: {store} {other}"
        expected = "--compare A B" if compare else "one store, or --compare A B"
        raise InputError("a comparison is of two stores", field="--compare", found=found, expected=expected)
    if other is not None:
        say(f"report: {write_comparison(store, other, out, recipe, tables)}")
    else:
        say(f"report: {write_report(store, out, recipe, tables)}")
    return 0


@app.command
def reproduce(*stores: Path, out: Path = Path("docs/reproduction.md")) -> int:
    """Write which claims of the three papers reproduce, from the records of stores; runs nothing.

    Parameters
    ----------
    stores
        Stores that hold the recipes; by default `runs`.
    out
        The Markdown file to write.
    """
    from inoculate.core.whole import write_whole
    from inoculate.experiments.recipe import load_recipe
    from inoculate.reports.reproduction.page import CLAIMS, reproduction

    if not out.parent.is_dir() or out.is_dir():
        raise InputError("no file can be written there", field="--out", found=str(out), expected="a file in a folder")
    asked = {claim.recipe for claim in CLAIMS if claim.measure is not None}
    page = reproduction(stores or (Path("runs"),), {name: load_recipe(name).raw for name in asked})
    write_whole(out, page.encode("utf-8"))
    say(f"page: {out}")
    return 0


@app.command(name="list")
def list_(kind: Kind) -> int:
    """List what there is.

    Parameters
    ----------
    kind
        recipes, defenses, attacks, judges, tasks, sources, models or worlds; plug-ins with their package.
    """
    from inoculate.experiments.listing import listing

    say(listing(kind))
    return 0
