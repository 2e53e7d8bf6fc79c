"""TRL's SFTTrainer with any defense as its objective; needs the extra `trl`."""

from __future__ import annotations

from typing import Any, cast

from inoculate.core.errors import InputError
from inoculate.training.trainer import Defended

try:
    from trl.trainer.sft_trainer import SFTTrainer
except ImportError as error:
    raise ImportError("DefenseSFTTrainer needs TRL: pip install 'inoculate[trl]'") from error


class DefenseSFTTrainer(Defended, SFTTrainer):
    """`DefenseSFTTrainer(…, defense=Booster(), role_datasets={"harmful": dataset})`.

    Takes what `SFTTrainer` takes: `train_dataset`, the role `align`, and every role's dataset are messages, prompts
    with completions or text, and go through its chat template. With `packing`, rows of several conversations share a
    sequence, and a defense that pairs harmful answers with safe ones (RepNoise) refuses them. The defense's losses are
    its own: TRL's extras on the loss (entropy and accuracy in the logs, a router's) are not there.

    Raises:
        InputError: as `inoculate.training.trainer.Defended`; for a loss of TRL's or the user's own.
    """

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As `Defended`'s, with TRL's offloading of activations."""
        with self.maybe_activation_offload_context:
            return super().training_step(*args, **kwargs)

    def _check(self) -> None:
        super()._check()
        loss = getattr(self.args, "loss_type", "nll")
        for field, found in (("loss_type", loss != "nll" and loss), ("compute_loss_func", self.compute_loss_func)):
            if found:
                expected = "nothing: the defense is the loss"
                raise InputError("not with a defense as the objective", field=field, found=found, expected=expected)

    def _prepared(self, dataset: Any, role: str) -> Any:
        if not self._skip_prepare_dataset:
            tokenizer, args = cast("Any", self.processing_class), cast("Any", self.args)
            dataset = self._prepare_dataset(dataset, tokenizer, args, args.packing, self._formatting_func, role)
        return super()._prepared(dataset, role)
