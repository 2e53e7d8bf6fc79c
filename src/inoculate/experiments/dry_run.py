"""What a recipe would do: every model and source resolved, nothing downloaded or computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from inoculate.attacks.finetune import Finetune
from inoculate.data import sources
from inoculate.data.mix import Part
from inoculate.evals.evaluate import Evaluation
from inoculate.experiments.attack import Attack
from inoculate.experiments.base import Pretrained
from inoculate.experiments.cost import Cost, Costing
from inoculate.experiments.few_shot import FewShotAttack
from inoculate.experiments.lines import Alignment, CostLine, Line
from inoculate.experiments.recipe import Recipe
from inoculate.experiments.runner import in_order
from inoculate.experiments.search import SearchAttack
from inoculate.experiments.search_line import SearchLine
from inoculate.experiments.stage import Stage
from inoculate.experiments.start import Body
from inoculate.experiments.vector import VectorTraining
from inoculate.models.adapters import Lora
from inoculate.models.load import model_shape


def describe(recipe: Recipe, store: Path) -> str:
    """A text: models with their shapes, sources with their fingerprints, stages with what is already done.

    Raises:
        InputError: if a source or model cannot be resolved.
    """
    text = [f"recipe {recipe.name} ({recipe.hash}): {len(recipe.lines)} lines"]
    lines = [line for line in recipe.lines if isinstance(line, Line | CostLine | SearchLine)]
    pretrained = [line.base for line in lines if isinstance(line.base, Pretrained)]
    for base in (base for i, base in enumerate(pretrained) if base not in pretrained[:i]):
        shape = model_shape(base.name_or_path, base.shape)
        facts = ", ".join(f"{name} {value:,}" for name, value in shape.items())
        text.append(f"model  {base.name_or_path}@{base.revision or 'main'}: {facts}, {base.dtype}")
        text += _adapters(lines, base)
    stages = in_order(recipe.stages())
    worlds = {stage.world.name: stage.world for stage in stages if isinstance(stage, Body)}
    text += [f"world  {name}: {world.fingerprint()}" for name, world in worlds.items()]
    for part in sorted({(part.source, part.split) for part in _parts(stages)}):
        sources.check(*part)
        text.append(f"data   {part[0]}#{part[1]}: {sources.fingerprint(*part)}")
    done = sum((store / stage.folder / "stage.json").exists() for stage in stages)
    kinds = Counter(stage.kind for stage in stages)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    steps = sum(stage.attack.steps() for stage in stages if isinstance(stage, Attack))
    runs = sum(stage.attack.n_trials + stage.attack.reruns for stage in stages if isinstance(stage, FewShotAttack))
    searches = [stage.search for stage in stages if isinstance(stage, SearchAttack)]
    trials = sum(search.n_trials + search.finals + search.reruns for search in searches)
    measured = sum(stage.cost.repeats for stage in stages if isinstance(stage, Cost))
    work = [f"{steps:,} attack steps"] * bool(steps) + [f"at most {runs:,} few-shot runs"] * bool(runs)
    work += [f"{trials:,} trials and re-runs of attacks"] * bool(trials)
    work += [f"{measured:,} measured steps"] * bool(measured)
    text.append(f"stages {len(stages)} ({counts}; {done} done in {store}), {', '.join(work) or 'no attack'}")
    return "\n".join(text)


def _adapters(all_lines: Sequence[Line | CostLine | SearchLine], base: Pretrained) -> list[str]:
    """Each adapter's size, from the model built on the meta device.

    Raises:
        InputError: if a target module does not exist in the model.
    """
    lines = [line for line in all_lines if line.base == base]
    adapters = [block.lora for line in lines for block in _blocks(line) if block is not None]
    shapes = [lora for i, lora in enumerate(adapters) if lora is not None and lora not in adapters[:i]]
    return [
        f"lora   r {lora.r}, alpha {lora.lora_alpha:g}, on {_named(lora)}: "
        f"{model_shape(base.name_or_path, base.shape, lora)['adapter_parameters']:,} weights"
        for lora in shapes
    ]


def _blocks(line: Line | CostLine | SearchLine) -> tuple[Alignment | Finetune | VectorTraining | Costing | None, ...]:
    """What trains in a line, a search's trials apart."""
    if isinstance(line, CostLine):
        return (line.cost,)
    return (line.align, line.vector) if isinstance(line, SearchLine) else (line.align, line.attack, line.vector)


def _named(lora: Lora) -> str:
    return lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)


def _parts(stages: Iterable[Stage]) -> Iterator[Part]:
    for given in (given for stage in stages for given in stage.inputs()):
        if isinstance(given, Part):
            yield given
        elif isinstance(given, Evaluation):
            yield from given.parts()
