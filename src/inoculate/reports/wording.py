"""Names and numbers as a reader wants them."""

from __future__ import annotations

import math
from typing import Any

from inoculate.core.text import visible as visible

_DEFENSES = {
    "": "Undefended",
    "none": "Undefended",
    "sft": "SFT",
    "mlac": "MLAC",
    "repnoise": "RepNoise",
    "random_init": "Random initialization",
}
_KEYS = {
    "poison_ratio": "p",
    "learning_rate": "lr",
    "num_samples": "n",
    "harmful_samples": "harmful samples",
    "adapter_mode": "adapter",
    "threat_model": "threat model",
    "max_steps": "max steps",
    "optim": "optimizer",
    "lr_scheduler_type": "schedule",
    "batch_size": "batch",
    "n_trials": "trials",
    "adam_epsilon": "Adam ε",
    "vector_kl_weight": "β",
    "lisa_rho": "ρ",
    "lisa_align_steps": "K₁",
    "lisa_user_steps": "K₂",
    "vector_target_modules": "targets",
    "vector_steps": "vector steps",
    "vector_samples": "vector samples",
    "vector_r": "r",
    "harmful_data": "harmful data",
    "align_schedule": "schedule",
    "lam": "λ",
    "alpha": "α",
    "rho": "ρ",
    "inner_steps": "K",
    "inner_learning_rate": "inner lr",
    "adversary_learning_rate": "adversary lr",
}
_TITLES = {
    "poison_ratio": "Harmful share p of the attacker's data",
    "learning_rate": "Attack learning rate",
    "num_samples": "Samples n in the attacker's data",
    "harmful_samples": "Harmful samples in the attacker's data",
    "adam_epsilon": "Adam's ε",
    "vector_samples": "Harmful samples that made the vector",
    "vector_r": "Rank r of the vector",
    "lam": "λ (weight of the defense term)",
    "alpha": "α (length of the simulated step, L2)",
    "rho": "ρ (length of the perturbation, L2)",
}


def defense_name(name: str) -> str:
    """`security_vectors` → Security Vectors."""
    return visible(_DEFENSES.get(name) or name.replace("_", " ").title())


def key_name(key: str) -> str:
    """The short name of a setting, as it stands in labels and column heads."""
    return _KEYS.get(key, key.replace("_", " "))


def axis_title(key: str) -> str:
    """The long name of a setting, as it stands at an axis."""
    return _TITLES.get(key, key.replace("_", " ").capitalize())


def setting_text(key: str, value: Any) -> str:
    """`lr 1e-5`, `p 0.1`, `α 0.02`; of what needs no name only the value: `open weights`, `merge`."""
    if key in ("threat_model", "base", "attack"):
        return value_text(key, value)
    return f"{key_name(key)} {value_text(key, value)}"


def value_text(key: str, value: Any) -> str:
    """A setting's value: learning rates as 1e-5, missing ones as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return visible(str(value).replace("_", " ") if key == "threat_model" else str(value))
    return scientific(value) if key.endswith(("learning_rate", "epsilon")) else number(value)


def scientific(value: float) -> str:
    """1e-5, 2.5e-4."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def number(value: float) -> str:
    """Plain where that is short, scientific where it is not."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e6
    return f"{value:.6g}" if plain else scientific(value)


def rate(value: float) -> str:
    """A rate with two decimals, never rounded up to 1 or down to 0."""
    text = f"{value:.2f}"
    if text == "1.00" and value < 1:
        return "> 0.99"
    return "< 0.01" if text == "0.00" and value > 0 else text


def times(value: float) -> str:
    """A ratio with two significant digits or whole."""
    if math.isinf(value):
        return "∞"
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def count(n: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def listed(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)
