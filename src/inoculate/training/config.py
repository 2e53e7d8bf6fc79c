"""Training arguments, under Hugging Face's names."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from inoculate.core.types import Positive, Value
from inoculate.data.batches import Sampling


class Training(Value):
    """One training run. The defaults are what the Booster paper uses at alignment, but for the length."""

    learning_rate: Positive = 5e-4
    max_steps: NonNegativeInt | None = None
    """Optimizer steps; overrides `num_train_epochs`."""
    num_train_epochs: Positive = 20
    """Epochs over the defense's first role."""
    per_device_train_batch_size: PositiveInt = 10
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches per optimizer step. Their losses are weighted by answer tokens, so 8 × 1 is 1 × 8."""
    max_grad_norm: Positive | None = 1.0
    """Clips the L2 norm of the whole combined gradient; null leaves it alone."""
    optim: Literal["adamw_torch", "sgd", "adafactor", "muon"] = "adamw_torch"
    """`muon` is for matrices, as the embeddings are too here; vectors (norms, biases) go on with AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: Positive = 1e-8
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"] = "constant"
    warmup_steps: NonNegativeInt = 0
    bf16: bool = False
    """Autocast forward passes to bfloat16; weights keep their own precision."""
    gradient_checkpointing: bool = False
    packing: bool = True
    """Train without padding where the model's attention allows it; the loss is the same."""
    train_sampling_strategy: Sampling = "random"
    """`group_by_length` puts rows of like length into a step: less padding, where rows are not packed."""
    seed: int = 0
    """Order of the data, and dropout."""
    logging_steps: PositiveInt = 10
    report_to: tuple[str, ...] = ()
    """Trackers that accelerate knows (tensorboard, trackio, wandb, mlflow, …); metrics.jsonl is always written."""

    @model_serializer(mode="wrap")
    def _as_it_was(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What came after results had been stored is left out at its default, so that hashes are what they were."""
        fields = dump(self)
        if self.train_sampling_strategy == "random":
            fields.pop("train_sampling_strategy", None)
        return fields

    @model_validator(mode="after")
    def _warmup_is_used(self) -> Training:
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            raise ValueError("warmup_steps has no effect with lr_scheduler_type: constant; use constant_with_warmup")
        return self

    @property
    def rows_per_step(self) -> int:
        """Rows of each role that one optimizer step sees."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def steps(self, rows: int) -> int:
        """Optimizer steps of a run over `rows` rows of the defense's first role."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, round(self.num_train_epochs * -(-rows // self.rows_per_step)))
