"""LoRA adapters through peft, and the two ways an attack may go on from an aligned adapter."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from inoculate.core.errors import InputError
from inoculate.core.types import Positive, Value

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel
    from typing_extensions import TypeIs

AdapterMode = Literal["full", "continue", "merge", "qlora", "head", "embeddings"]
"""`full`: all weights are trained. `continue`: the attack goes on with the alignment's LoRA. `merge`: the alignment's
LoRA is merged into the base and a fresh one is trained; `qlora`: the same on a base of 4 bits. `head`, `embeddings`:
only the output or the input embeddings are trained, which are the same weights where they are tied. The published
Booster table compares Booster under `continue` with baselines under `merge`; so the mode stands on every record."""

FRESH_LORA: frozenset[AdapterMode] = frozenset({"merge", "qlora"})
"""Modes that train a new adapter, whose shape they need."""


class Lora(Value):
    """A LoRA adapter, under peft's names."""

    r: PositiveInt = 32
    lora_alpha: Positive = 4
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "k_proj", "v_proj")


def add_lora(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """Mount a fresh LoRA: adapters in float32 also on a bf16 base (a step of 0.1 over 4 M bf16 weights moves only half
    of them), everything else frozen. The seed fixes the initial weights.

    Raises:
        InputError: if the model has none of the target modules.
    """
    import torch
    from peft import get_peft_model

    config = _peft_config(model, lora)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)  # type: ignore[return-value]


def _add_qlora(model: Any, lora: Lora, seed: int) -> PeftModel:
    from inoculate.models.quantize import quantize

    quantize(model)
    model.is_loaded_in_4bit = True  # how peft is told
    try:
        return add_lora(model, lora, seed)
    finally:
        del model.is_loaded_in_4bit


def is_adapted(model: Any) -> TypeIs[PeftModel]:
    """Whether a model has an adapter of peft's. Nobody else's model is one, so peft, which takes seconds, is not
    imported to ask."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


VECTOR = "security_vector"
"""Name of a security vector among the adapters of a model that has others."""


def add_vector(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """Mount a fresh LoRA for training beside whatever adapter the model has; only the fresh one is trainable.

    Raises:
        InputError: if the model has none of the target modules.
    """
    import torch

    if not is_adapted(model):
        return add_lora(model, lora, seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model.add_adapter(VECTOR, _peft_config(model.get_base_model(), _spelled_out(model.get_base_model(), lora)))
    tuner: Any = model.base_model
    tuner.set_adapter([*model.active_adapters, VECTOR])
    for name, weight in model.named_parameters():
        weight.requires_grad_(f".{VECTOR}." in name)
    return model


def _spelled_out(model: Any, lora: Lora) -> Lora:
    """`all-linear` as names: peft would take the linear layers inside other adapters too."""
    from torch import nn

    if lora.target_modules != "all-linear":
        return lora
    head = model.get_output_embeddings()
    names = {
        name.removesuffix(".base_layer").rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name
    }
    return lora.model_copy(update={"target_modules": tuple(sorted(names))})


def _peft_config(model: Any, lora: Lora) -> Any:
    from peft import LoraConfig

    options = lora.model_dump()
    if not isinstance(lora.target_modules, str):
        options["target_modules"] = list(lora.target_modules)
        leaves = {part for name, _ in model.named_modules() for part in name.split(".") if not part.isdigit()}
        for target in lora.target_modules:
            if target.rpartition(".")[2] not in leaves:
                raise InputError(
                    "the model has no such module", field="lora.target_modules", found=target, known=leaves
                )
    return LoraConfig(task_type="CAUSAL_LM", **options)


def prepare_attack(model: nn.Module, mode: AdapterMode, lora: Lora | None, seed: int) -> nn.Module:
    """Make an aligned model ready for fine-tuning under the given mode.

    Args:
        model: a plain model, or a peft model holding the alignment's adapter.
        lora: the shape of the fresh adapter for `merge` and `qlora`.

    Raises:
        InputError: if `continue` is asked of a model without an adapter, or a fresh one without a shape.
    """
    if mode == "continue":
        if not is_adapted(model):
            raise InputError(
                "the model has no adapter to go on with", field="adapter_mode", found=mode, expected="full or merge"
            )
        for name, weight in model.named_parameters():
            weight.requires_grad_("lora_" in name)
        return model
    if is_adapted(model):
        model = model.merge_and_unload()
    if mode in FRESH_LORA:
        if lora is None:
            raise InputError(
                f"{mode} trains a fresh LoRA, whose shape is missing", field="lora", found=None, expected="r, …"
            )
        return (add_lora if mode == "merge" else _add_qlora)(model, lora, seed)  # type: ignore[arg-type]
    model.requires_grad_(mode == "full")
    if mode != "full":
        part = model.get_output_embeddings() if mode == "head" else model.get_input_embeddings()  # type: ignore[operator]
        part.requires_grad_(True)
    return model
