"""Where an attacker may start on a classifier: a random, a pretrained, a tuned or a defended body."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from inoculate.core.hashing import tree_sha256
from inoculate.core.records import Record, write_records
from inoculate.core.types import Value
from inoculate.data.batches import TensorFeed
from inoculate.data.world_table import WorldConfig
from inoculate.defenses import MLAC, SFT, AdversarialTraining
from inoculate.experiments.stage import Context, Input, Stage, gave_up
from inoculate.models.bodies import (
    BodyConfig,
    PretrainedEncoder,
    as_tensors,
    build_body,
    load_body,
    load_encoder,
    reinitialized,
    save_body,
)
from inoculate.training.config import Training


class Random(Value):
    """The body's shape with random weights: what a defense is to make no worse for the attacker than this."""

    name: Literal["random"] = "random"


class AsPretrained(Value):
    """The body as it was pretrained."""

    name: Literal["pretrained"] = "pretrained"


class Trained(Value):
    """The body trained on the desired task, under a defense; `sft` is the one that is tuned and nothing else."""

    name: Literal["trained"] = "trained"
    defense: Annotated[SFT | AdversarialTraining | MLAC, Field(discriminator="name")]
    training: Training


StartConfig = Annotated[Random | AsPretrained | Trained, Field(discriminator="name")]


class Body(Stage):
    """A pretrained body: an MLP taught a world's tasks, an encoder with a world's word vectors, or one that exists."""

    kind: ClassVar[str] = "body"
    world: WorldConfig
    body: BodyConfig
    training: Training | None = None
    """Of an MLP; null leaves it as it was initialized."""
    seed: int = 0

    def inputs(self) -> Iterable[Input]:
        return (self.world, self.body) if isinstance(self.body, PretrainedEncoder) else (self.world,)

    def fingerprints(self) -> dict[str, str]:
        body = self.body
        found = {self.world.name: self.world.fingerprint()}
        if isinstance(body, PretrainedEncoder) and Path(body.name_or_path).exists():
            found[body.name_or_path] = tree_sha256(Path(body.name_or_path))
        return found

    def label(self) -> str:
        return f"{self.named()} · seed {self.seed}"

    def named(self) -> str:
        """World and body in two words."""
        shape = self.body.name_or_path if isinstance(self.body, PretrainedEncoder) else self.body.name
        return f"{self.world.name} · {shape}"

    def settings(self) -> dict[str, Any]:
        """World, shape and training: bodies that differ in any of them are never pooled."""
        whole = self.model_dump(mode="json", include={"world", "body", "training"})
        return {part: {k: v for k, v in (given or {}).items() if k != "name"} for part, given in whole.items()}

    def run(self, out: Path, upstream: Mapping[str, Path], context: Context) -> str:
        import torch

        from inoculate.models.classifier import EncoderBody
        from inoculate.models.pretraining import ManyTasks, set_word_vectors
        from inoculate.models.sandbox import build_tokenizer
        from inoculate.training.fit import fit

        if isinstance(self.body, PretrainedEncoder):
            save_body(out, *load_encoder(self.body))
            return "ok"
        rows = self.world.rows("train")
        tokenizer: Any = None
        if isinstance(rows.inputs, Sequence):
            tokenizer = build_tokenizer(_words(rows.inputs))
        length = getattr(self.body, "max_length", None)
        tensors = as_tensors(rows.inputs, tokenizer, length)
        size = tensors["x"].shape[1] if tokenizer is None else 0
        body = build_body(self.body, self.seed, input_size=size, tokenizer=tokenizer)
        if isinstance(body, EncoderBody):
            set_word_vectors(body, **tensors)
        if self.training is None:
            save_body(out, body, tokenizer)
            return "ok"
        tensors |= _targets(labels=rows.pretraining)
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            model = ManyTasks(body, tensors["labels"].shape[1])
        training = self.training.model_copy(update={"seed": self.seed})
        feeds = {"align": TensorFeed(tensors, training.rows_per_step, self.seed, "align")}
        options = {"out": out, "save_every_s": context.save_every_s, "progress": context.progress}
        fitted = fit(context.place(model), SFT(), feeds, training, **options)
        save_body(out, body, tokenizer)
        return fitted.status


class Start(Stage):
    """The weights from which a few-shot attack starts."""

    kind: ClassVar[str] = "start"
    body: Body
    start: StartConfig
    seed: int = 0

    def upstream(self) -> Sequence[Stage]:
        return (self.body,)

    def inputs(self) -> Iterable[Input]:
        return self.body.inputs()

    def label(self) -> str:
        return f"{self._name()} · seed {self.seed}"

    def provenance(self) -> Record:
        start = self.start
        settings: dict[str, Any] = {}
        if isinstance(start, Trained):
            training = start.training
            settings = start.defense.model_dump(mode="json", exclude={"name"})
            settings |= {"learning_rate": training.learning_rate, "align_steps": training.max_steps}
        return Record(
            metric="",
            value=0.0,
            stage=self.folder,
            base=self.body.named(),
            base_seed=self.body.seed,
            base_params=self.body.settings(),
            defense=self._name(),
            defense_params=settings,
            defense_seed=self.seed,
        )

    def run(self, out: Path, upstream: Mapping[str, Path], context: Context) -> str:
        body, tokenizer = load_body(upstream[self.body.folder])
        if isinstance(self.start, Random):
            save_body(out, reinitialized(body, self.seed), tokenizer)
            return "ok"
        if isinstance(self.start, AsPretrained):
            save_body(out, body, tokenizer)
            return "ok"
        return self._train(self.start, body, tokenizer, out, context)

    def _train(self, start: Trained, body: Any, tokenizer: Any, out: Path, context: Context) -> str:
        import torch
        from safetensors.torch import save_file

        from inoculate.models.classifier import Classifier
        from inoculate.training.fit import fit

        world = self.body.world
        rows = world.rows("train")
        inputs = as_tensors(rows.inputs, tokenizer, getattr(self.body.body, "max_length", None))
        retained = 0 if rows.retained is None else rows.retained.shape[1]
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            model = Classifier(body, world.classes("desired"), world.classes("restricted"), retained)
        model = context.place(model)
        desired = {**inputs, **_targets(labels=rows.labels["desired"], retained=rows.retained)}
        restricted = {**inputs, **_targets(labels=rows.labels["restricted"])}
        tensors = {"align": desired, "harmful": restricted, "adversary": restricted}
        training = start.training.model_copy(update={"seed": self.seed})
        defense: Any = start.defense
        feeds = {
            role: TensorFeed(tensors[role], training.rows_per_step * count, self.seed, role)
            for role, count in defense.needs.items()
        }
        options = {"out": out, "save_every_s": context.save_every_s, "progress": context.progress}
        fitted = fit(model, defense, feeds, training, **options)
        blank = replace(self.provenance(), recipe=context.recipe, attack="none")
        if fitted.status == "diverged":
            gone = replace(gave_up(blank, context, fitted), metric="desired_accuracy")
            write_records(out / "records.jsonl", [gone])
            return fitted.status
        save_body(out, body, tokenizer)
        heads = {name: t.contiguous() for name, t in model.state_dict().items() if not name.startswith("body.")}
        save_file(heads, out / "heads.safetensors")
        accuracy, n = self._accuracy(model.eval(), tokenizer)
        write_records(
            out / "records.jsonl",
            [
                replace(blank, metric="desired_accuracy", value=accuracy, n=n, split="heldout", step=0),
                replace(blank, metric="train_wall_s", value=_wall_s(out, fitted.step)),
            ],
        )
        return fitted.status

    def _accuracy(self, model: Any, tokenizer: Any) -> tuple[float, int]:
        """Of the desired task on held-out rows, by the head as it was trained."""
        import torch

        from inoculate.attacks.sequential import EVAL_ROWS, Examples
        from inoculate.models.loss import device_of

        rows = self.body.world.rows("heldout")
        inputs = as_tensors(rows.inputs, tokenizer, getattr(self.body.body, "max_length", None))
        right = 0
        with torch.no_grad():
            for chunk in Examples(inputs, torch.from_numpy(rows.labels["desired"])).chunks(EVAL_ROWS):
                logits = model(**{name: tensor.to(device_of(model)) for name, tensor in chunk.inputs.items()}).logits
                right += int((logits.argmax(1).cpu() == chunk.labels).sum())
        return right / len(rows), len(rows)

    def _name(self) -> str:
        if isinstance(self.start, Trained):
            return self.start.defense.name
        return "random" if isinstance(self.start, Random) else "none"


def _words(texts: Iterable[str]) -> list[str]:
    """The words that stand in two texts or more; the others are the tokenizer's unknown word."""
    counts = Counter(word for text in texts for word in set(text.split()))
    return sorted(word for word, count in counts.items() if count > 1)


def _targets(**arrays: Any) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}


def _wall_s(out: Path, steps: int) -> float:
    """Seconds of training, from the logged steps: the same whether or not the run was cut off and resumed."""
    logged = [json.loads(line)["step_s"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    return steps * sum(logged) / max(1, len(logged))
