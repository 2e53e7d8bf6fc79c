"""Fine-tuning on a user's data, a share of it harmful: the attack of the Booster paper, and the benign user too.

Under the service threat model the provider may guard it (see `inoculate.attacks.guards`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt, model_validator

from inoculate.attacks.guards import Guard, LisaGuard, MountedVector
from inoculate.core.errors import InputError
from inoculate.core.hashing import tree_sha256
from inoculate.core.types import Defense, Rate, Value
from inoculate.data.mix import Encodings, Mix, Part, poisoned
from inoculate.data.templates import Template
from inoculate.defenses import SFT
from inoculate.models.adapters import FRESH_LORA, AdapterMode, Lora, prepare_attack
from inoculate.training.config import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from inoculate.data.batches import Feed
    from inoculate.models.vectors import Mounted
    from inoculate.training.fit import Fitted


class Finetune(Value):
    """`num_samples` rows, a share `poison_ratio` of them harmful, learned by SFT, or as the provider's guard has it.

    Source: Huang et al., arXiv:2409.01586, §5.1; their defaults are p = 0.1, n = 1000, learning rate 1e-5, 20 epochs.
    """

    name: Literal["finetune"] = "finetune"
    task: Part
    harmful: Part | None = None
    poison_ratio: Rate = 0.1
    num_samples: PositiveInt = 1000
    template: Template = "chat"
    max_length: PositiveInt = 256
    adapter_mode: AdapterMode = "full"
    lora: Lora | None = None
    """Shape of the fresh adapter under `adapter_mode: merge` and `qlora`."""
    seed: int = 0
    """Which rows the attacker has; their order is `training.seed`'s."""
    training: Training = Training(learning_rate=1e-5)
    guard: Guard | None = None
    """What the provider does inside the training; null is plain SFT."""

    @model_validator(mode="after")
    def _has_harmful_data(self) -> Finetune:
        if self.poison_ratio > 0 and self.harmful is None:
            raise ValueError("poison_ratio > 0 needs `harmful` data")
        if self.adapter_mode in FRESH_LORA and self.lora is None:
            raise ValueError(f"adapter_mode: {self.adapter_mode} trains a fresh LoRA and needs its shape under `lora`")
        return self

    @property
    def harmful_samples(self) -> int:
        """Harmful rows among the attacker's data."""
        return round(self.poison_ratio * self.num_samples)

    def mix(self) -> Mix:
        """The user's data in the role `align`, and what the guard needs in its own."""
        users = poisoned(
            self.task,
            self.harmful or self.task,
            poison_ratio=self.poison_ratio,
            num_samples=self.num_samples,
            template=self.template,
            max_length=self.max_length,
            seed=self.seed,
        )
        if not isinstance(self.guard, LisaGuard):
            return users
        return users.model_copy(update={"roles": {**users.roles, "guide": _needed(self.guard.guide, "guard.guide")}})

    def steps(self) -> int:
        """Optimizer steps of the whole attack."""
        return self.training.steps(self.num_samples)

    def objective(self) -> Defense:
        """What is descended: SFT, or the guard's own objective."""
        return self.guard if isinstance(self.guard, LisaGuard) else SFT()

    def run(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        observe: Callable[[Any, int], list[dict[str, Any]]] | None = None,
        observe_mounted: Callable[[Any, Mounted, int], list[dict[str, Any]]] | None = None,
        fed: Callable[[Mapping[str, Feed]], None] = lambda feeds: None,
        known: Encodings | None = None,
        **options: Any,
    ) -> tuple[Any, Fitted]:
        """Fine-tune a model.

        Args:
            observe: called with (the model under attack, steps made) at `observe_at`, an option of `fit`. A mounted
                vector is out then: what is observed is what would be served.
            observe_mounted: called beside it with (model, vector, steps made) while the guard's vector is mounted.
            fed: called with the data before the first step.
            known: rows that were encoded before, to look into and to add to.
            options: of `fit`: out, observe_at, save_every_s, progress.

        Returns:
            The attacked model (wrapped, if an adapter was mounted), without a vector, and how the run ended.

        Raises:
            InputError: if the guard's vector or data are missing, or the vector was made for another model.
        """
        from inoculate.models.vectors import check_backbone, mounted, read_vector
        from inoculate.training.fit import fit
        from inoculate.training.layout import feeds_for

        vector = None
        if isinstance(self.guard, MountedVector):
            vector = read_vector(_needed(self.guard.folder, "guard.folder"))
            check_backbone(model, vector)
        attacked = prepare_attack(model, self.adapter_mode, self.lora, self.training.seed)
        feeds = feeds_for(self.mix(), tokenizer, attacked, self.training, known=known)
        fed(feeds)
        with nullcontext() if vector is None else mounted(attacked, vector, check=False) as handle:

            def watch(step: int) -> list[dict[str, Any]]:
                with nullcontext() if handle is None else handle.unmounted():
                    rows = [] if observe is None else observe(attacked, step)
                if handle is not None and observe_mounted is not None:
                    rows = [*rows, *observe_mounted(attacked, handle, step)]
                return rows

            fitted = fit(attacked, self.objective(), feeds, self.training, observe=watch, **options)
        return attacked, fitted


def _needed(value: Any, field: str) -> Any:
    if not value:
        raise InputError("the guard needs this", field=field)
    return value


def guard_params(attack: Finetune) -> dict[str, Any]:
    """The guard's hyperparameters as they stand on records, each under the guard's name: Lisa's ρ is not Vaccine's."""
    guard = attack.guard
    if isinstance(guard, LisaGuard):
        values = guard.model_dump(mode="json", exclude={"name", "guide"})
        return {f"lisa_{name}": value for name, value in values.items()} | {
            "lisa_guide": [f"{part.source}:{part.answer}" for part in guard.guide]
        }
    if isinstance(guard, MountedVector) and guard.folder is not None:
        return {"vector": tree_sha256(Path(guard.folder))[:12]}
    return {}


def attack_params(attack: Finetune) -> Mapping[str, Any]:
    """The attack's settings, flat, as they stand on records."""
    training = attack.training
    return {
        "learning_rate": training.learning_rate,
        "max_steps": attack.steps(),
        "num_samples": attack.num_samples,
        "task": attack.task.source,
        "batch_size": training.rows_per_step,
        "optim": training.optim,
        "adam_epsilon": training.adam_epsilon,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "lr_scheduler_type": training.lr_scheduler_type,
        "template": attack.template,
        "data_seed": attack.seed,
    }
