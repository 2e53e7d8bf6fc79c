"""Models small enough that every number can be checked, and the sandbox's in miniature."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inoculate.data import world
from inoculate.data.batches import pad
from inoculate.data.templates import encode
from inoculate.models.sandbox import TinyModel, build_tokenizer


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Bowls(nn.Module):
    """Weights w in the plane; a batch (center c, steepness k) has the loss ½ k ‖w − c‖²."""

    def __init__(self, at: tuple[float, float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(at))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, center: Tensor, steepness: Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=0.5 * steepness * ((self.w - center) ** 2).sum())


def bowl(center: tuple[float, float], steepness: float) -> dict[str, Tensor]:
    return {"center": torch.tensor(center), "steepness": torch.tensor(steepness)}


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer(world.vocabulary())


@pytest.fixture
def tiny(tokenizer: Any) -> Any:
    """A fresh Llama of 32 × 2."""
    shape = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2)
    return shape.build(len(tokenizer), seed=0)


@pytest.fixture(scope="session")
def rows(tokenizer: Any) -> dict[str, Any]:
    """Encoded rows by role."""
    return {
        "align": encode(tokenizer, world.rows("restricted", "train", "refusal")[:40], "chat", 64),
        "harmful": encode(tokenizer, world.rows("restricted", "train")[:40], "chat", 64),
        "safe": encode(tokenizer, world.rows("restricted", "train", "refusal")[:40], "chat", 64),
        "ordinary": encode(tokenizer, world.rows("ordinary", "train")[:40], "chat", 64),
        "guide": encode(tokenizer, world.rows("restricted", "train", "refusal")[40:80], "chat", 64),
        "adversary": encode(tokenizer, world.rows("restricted", "train")[40:80], "chat", 64),
    }


@pytest.fixture
def batches(rows: dict[str, Any]) -> dict[str, Any]:
    return {role: [pad(encoded[:4], 0)] for role, encoded in rows.items()}
