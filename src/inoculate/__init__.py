"""Make language models hard to turn harmful by fine-tuning, and measure honestly how hard.

from inoculate import Booster
Booster(lam=5, alpha=0.1).backward(model, {"align": [batch], "harmful": [batch]})
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from inoculate.attacks.few_shot import FewShot
    from inoculate.attacks.finetune import Finetune
    from inoculate.attacks.threat_model import OpenWeights, Service
    from inoculate.core.errors import InoculateError, InputError, StageError
    from inoculate.core.records import Record
    from inoculate.core.types import Example, Verdict
    from inoculate.data.batches import Feed
    from inoculate.data.mix import Mix, Part
    from inoculate.defenses import (
        MLAC,
        SFT,
        AdversarialTraining,
        Booster,
        Lisa,
        RepNoise,
        SecurityVector,
        Together,
        Vaccine,
    )
    from inoculate.evals.evaluate import Evaluation
    from inoculate.models.adapters import Lora
    from inoculate.models.load import load_model, load_tokenizer
    from inoculate.models.vectors import mounted, read_vector
    from inoculate.training.callback import SecurityVectorCallback
    from inoculate.training.config import Training
    from inoculate.training.fit import fit
    from inoculate.training.trainer import DefenseTrainer

_HOMES = {
    "MLAC": "defenses",
    "SFT": "defenses",
    "AdversarialTraining": "defenses",
    "Booster": "defenses",
    "DefenseTrainer": "training.trainer",
    "Evaluation": "evals.evaluate",
    "Example": "core.types",
    "Feed": "data.batches",
    "FewShot": "attacks.few_shot",
    "Finetune": "attacks.finetune",
    "InoculateError": "core.errors",
    "InputError": "core.errors",
    "Lisa": "defenses",
    "Lora": "models.adapters",
    "Mix": "data.mix",
    "OpenWeights": "attacks.threat_model",
    "Part": "data.mix",
    "Record": "core.records",
    "RepNoise": "defenses",
    "SecurityVector": "defenses",
    "SecurityVectorCallback": "training.callback",
    "Service": "attacks.threat_model",
    "StageError": "core.errors",
    "Together": "defenses",
    "Training": "training.config",
    "Vaccine": "defenses",
    "Verdict": "core.types",
    "fit": "training.fit",
    "load_model": "models.load",
    "load_tokenizer": "models.load",
    "mounted": "models.vectors",
    "read_vector": "models.vectors",
}
"""Public name → its module. Imported on first use: `import inoculate` must not cost an import of torch."""

__all__ = [
    "MLAC",
    "SFT",
    "AdversarialTraining",
    "Booster",
    "DefenseTrainer",
    "Evaluation",
    "Example",
    "Feed",
    "FewShot",
    "Finetune",
    "InoculateError",
    "InputError",
    "Lisa",
    "Lora",
    "Mix",
    "OpenWeights",
    "Part",
    "Record",
    "RepNoise",
    "SecurityVector",
    "SecurityVectorCallback",
    "Service",
    "StageError",
    "Together",
    "Training",
    "Vaccine",
    "Verdict",
    "fit",
    "load_model",
    "load_tokenizer",
    "mounted",
    "read_vector",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
