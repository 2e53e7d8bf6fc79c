"""How far activations are from noise, and what a language model's head reads at each of its layers.

Suffixes: B rows · T tokens of a row · M tokens that count · D hidden · V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inoculate.core import ranks
from inoculate.core.errors import InputError
from inoculate.core.types import Batch
from inoculate.models.blocks import blocks_of, mlps_of, outputs_through
from inoculate.models.loss import IGNORED, inner_model, labeled_logits

KERNELS, FACTOR = 5, 2.0
"""Gaussian kernels, and by how much the width of each is above the one before."""


class Noising:
    """The part of RepNoise's loss that harmful answers have: called with a model and a batch, a 0-dim loss.

    Args:
        safe: the batch of the same prompts with safe answers.
        alpha, beta: weights of the ascent and of the noise.
    """

    def __init__(self, safe: Batch, *, alpha: float, beta: float) -> None:
        self.safe, self.alpha, self.beta = safe, alpha, beta
        self.harmful_loss = self.distance = float("nan")

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """β · mean_l MMD² − α · log mean_l h_l, times the batch's `loss_weight` if it has one.

        In several processes the tokens are those of all, so the loss is the same in each, and its gradient that of its
        own tokens.
        """
        labels_BT = apart(batch, self.safe)
        counts_BT = labels_BT != IGNORED
        blocks = blocks_of(model)
        mlps, layers = mlps_of(blocks), [block.layer for block in blocks[:-1]]
        seen: dict[int, Tensor] = {}

        def see(number: int, hidden_BTD: Tensor) -> None:
            seen[number] = hidden_BTD

        with outputs_through([*mlps, *layers], see):
            logits_MV = labeled_logits(model, {**batch, "labels": labels_BT})
        made = [ranks.rows(seen[number][counts_BT]) for number in range(len(mlps))]
        states = [seen[number] for number in range(len(mlps), len(seen))]
        last = _mean(logits_MV, labels_BT[:, 1:][counts_BT[:, 1:]])
        distance = torch.stack([distance_to_noise(x_MD) for x_MD in made]).mean()
        harmful_loss = ranks.whole(torch.stack([*(_read(model, state, labels_BT) for state in states), last])).mean()
        self.distance, self.harmful_loss = distance.item(), harmful_loss.item()
        loss = self.beta * distance - self.alpha * harmful_loss.log()
        weight = batch.get("loss_weight")
        return loss if weight is None else loss * ranks.total(float(weight))


def apart(harmful: Batch, safe: Batch) -> Tensor:
    """The labels of harmful answers, −100 too where the safe answer has the same token in the same place.

    Either batch may be padded or packed. In the harmful one's shape.

    Raises:
        InputError: the rows do not answer the same prompts, or an answer is no other than its counterpart.
    """
    labels_BT = harmful["labels"].clone()
    ours, theirs = _rows(harmful), _rows(safe)
    for number, (row, other) in enumerate(zip(ours, theirs, strict=False)):
        ids, kept, counterpart = harmful["input_ids"][row], labels_BT[row], safe["input_ids"][other]
        prompt = _prompt(kept)
        if not torch.equal(ids[:prompt], counterpart[: _prompt(safe["labels"][other])]):
            raise _unpaired(f"row {number} answers another prompt")
        n = min(len(ids), len(counterpart))
        kept[:n][ids[:n] == counterpart[:n]] = IGNORED
    if len(ours) != len(theirs):
        raise _unpaired(f"{len(ours)} harmful rows, {len(theirs)} safe ones")
    if harmful.get("loss_weight") == 0:  # a row that only keeps this process in step with the others
        labels_BT.fill_(IGNORED)
    if not ranks.total(float((labels_BT != IGNORED).sum())):
        raise _unpaired("every answer is its own counterpart")
    return labels_BT


def distance_to_noise(x_MD: Tensor) -> Tensor:
    """MMD² of rows [M, D] and as many from N(0, I), under five Gaussian kernels; 0-dim, ≥ 0, in float32.

    The middle kernel is exp(−‖x − y‖² / s) with s the mean of ‖x − y‖² over all pairs, held fixed. (Biased estimate:
    Gretton et al., JMLR 2012, eq. 5.) Draws from the global RNG.
    """
    x_MD = x_MD.float()
    noise_MD = torch.randn_like(x_MD)
    ranks.of_the_first([noise_MD])
    both = torch.cat([x_MD, noise_MD])
    square = (both * both).sum(1)
    distances = (square[:, None] + square - 2 * both @ both.T).clamp_min(0)
    size = len(both)
    width = distances.detach().sum() / (size * (size - 1))
    kernel = torch.stack([(-distances / (width * FACTOR ** (i - KERNELS // 2))).exp() for i in range(KERNELS)]).sum(0)
    m = len(x_MD)
    return kernel[:m, :m].mean() + kernel[m:, m:].mean() - 2 * kernel[:m, m:].mean()


def _read(model: nn.Module, state_BTD: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the labeled tokens when the head reads this layer's state one token before."""
    next_BT = labels_BT[:, 1:]
    wanted = next_BT != IGNORED
    head = inner_model(model).get_output_embeddings()
    return _mean(head(state_BTD[:, :-1][wanted]), next_BT[wanted])


def _mean(logits_MV: Tensor, labels_M: Tensor) -> Tensor:
    """Cross-entropy summed over this process's tokens, over the number of all processes' tokens."""
    if ranks.count() == 1:
        return F.cross_entropy(logits_MV.float(), labels_M)
    return F.cross_entropy(logits_MV.float(), labels_M, reduction="sum") / ranks.total(len(labels_M))


def _rows(batch: Batch) -> Sequence[tuple[int, slice]]:
    """Where each sequence lies in a batch, its padding left out."""
    if "cu_seq_lens_q" in batch:
        bounds = batch["cu_seq_lens_q"].tolist()
        return [(0, slice(a, b)) for a, b in itertools.pairwise(bounds)]
    ends = [
        int((labels != IGNORED).nonzero().max()) + 1 if (labels != IGNORED).any() else 0 for labels in batch["labels"]
    ]
    return [(row, slice(0, end)) for row, end in enumerate(ends)]


def _prompt(labels_T: Tensor) -> int:
    """Tokens before the answer."""
    return int((labels_T != IGNORED).int().argmax()) if len(labels_T) else 0


def _unpaired(found: str) -> InputError:
    expected = "safe answers to the prompts of the harmful ones, row by row"
    return InputError("answers that are not paired", field="safe", found=found, expected=expected)
