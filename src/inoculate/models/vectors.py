"""Security vectors on a model: read from an adapter's folder, mounted, unmounted, never merged.

At rest a vector is a LoRA adapter that peft loads. Mounted it is one forward hook on each linear layer that it
concerns: the layer's output gains s · B A x, and gradients flow through that to earlier layers. The vector is no
parameter of the model. So the model's parameters, their names, `state_dict` and checkpoints are what they would be
without it, nothing can train it, nothing can merge it, and to unmount is to remove the hooks.
Why not peft's own layers: docs/design/005-mounting.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from inoculate.core.errors import InputError
from inoculate.core.paths import local_path
from inoculate.models.checkpoint import ADAPTER_CONFIG, check_adapter, read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

ABOUT = "security_vector.json"
"""Beside the adapter: what the vector was made for, and how."""
TOLERANCE = 0.13
"""Nats, mean over the probe's tokens. The same backbone in bf16 or with its LoRA merged stays well below (measured:
docs/design/005-mounting.md); another fine-tuning of the same base is above."""
_PROBE_TOKENS = 48
_PREFIX = "base_model.model."


class Layer(NamedTuple):
    """A [r, in], B [out, r] already times the LoRA's scaling."""

    A: Tensor
    B: Tensor


class Vector(NamedTuple):
    """A security vector: module path → its low-rank update, and the probe of the backbone it was trained on."""

    folder: Path
    layers: Mapping[str, Layer]
    probe: tuple[float, ...]


def read_vector(folder: str | Path) -> Vector:
    """A vector from its folder, in float32.

    Raises:
        InputError: missing or damaged files, an adapter that is no security vector, another kind of adapter than a
            plain LoRA on linear layers, or weights that do not have the rank that the configuration says.
    """
    import torch
    from safetensors.torch import load_file

    folder = local_path(str(folder), "folder")
    if not (folder / ADAPTER_CONFIG).is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("*")))
        found = there or ("an empty folder" if folder.is_dir() else "no such folder")
        raise InputError("not a security vector", file=folder, found=found, expected=f"a folder with {ADAPTER_CONFIG}")
    if not (folder / ABOUT).is_file():
        raise InputError(
            "an adapter, but not a security vector", file=folder, expected=f"{ABOUT}, which `inoculate vector` writes"
        )
    check_adapter(folder, allow_pickle=False)
    config, about = read_json(folder / ADAPTER_CONFIG), read_json(folder / ABOUT)
    if about.get("status") == "diverged":
        raise InputError("the training of this vector diverged", file=folder / ABOUT, field="status", found="diverged")
    probe = about.get("probe")
    if not isinstance(probe, list) or not probe or not all(isinstance(value, int | float) for value in probe):
        raise InputError("the probe of the backbone is missing", file=folder / ABOUT, field="probe", found=probe)
    _check_plain(folder, config)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise InputError("not a LoRA's shape", file=folder / ADAPTER_CONFIG, field="r, lora_alpha", found=(rank, alpha))
    scaling = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    tensors = {
        name.removeprefix(_PREFIX): tensor.float()
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    layers = {}
    for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        module = name.removesuffix(".lora_A.weight")
        a, b = tensors.pop(name), tensors.pop(f"{module}.lora_B.weight", None)
        if b is None or a.ndim != 2 or b.ndim != 2 or len(a) != rank or b.shape[1] != rank:
            shapes = f"A {tuple(a.shape)}, B {None if b is None else tuple(b.shape)}"
            raise InputError(
                "the weights are not of the rank that is configured",
                file=folder,
                field=module,
                found=shapes,
                expected=f"rank {rank}",
            )
        layers[module] = Layer(a, b * scaling)
    if tensors or not layers:
        found = next(iter(tensors), "no LoRA weights")
        raise InputError("not a LoRA on linear layers", file=folder / "adapter_model.safetensors", found=found)
    if not all(torch.isfinite(part).all() for layer in layers.values() for part in layer):
        raise InputError("the vector's weights are not finite", file=folder)
    return Vector(folder, layers, tuple(float(value) for value in probe))


def _check_plain(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise InputError(
            "not a LoRA",
            file=folder / ADAPTER_CONFIG,
            field="peft_type",
            found=config.get("peft_type"),
            expected="LORA",
        )
    for field in ("use_dora", "modules_to_save", "alpha_pattern", "rank_pattern", "lora_bias", "fan_in_fan_out"):
        if config.get(field):
            raise InputError(
                "a security vector is a plain LoRA", file=folder / ADAPTER_CONFIG, field=field, found=config[field]
            )


class Mounted:
    """A vector on a model. `mount` and `unmount` may be called any number of times; neither touches a parameter."""

    def __init__(self, model: nn.Module, vector: Vector) -> None:
        self.model, self.vector = model, vector
        self._places = _places(model, vector)
        self._handles: list[Any] = []

    @property
    def on(self) -> bool:
        """Whether the vector is in the forward pass."""
        return bool(self._handles)

    def mount(self) -> None:
        """Put the vector into the forward pass."""
        if not self.on:
            self._handles = [module.register_forward_hook(_adding(layer)) for module, layer in self._places]

    def unmount(self) -> None:
        """Take it out."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def unmounted(self) -> Iterator[None]:
        """Without the vector inside the context, as it was afterwards."""
        was_on = self.on
        self.unmount()
        try:
            yield
        finally:
            if was_on:
                self.mount()

    def merge(self) -> None:
        """Refused.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a security vector is never merged: it holds the harmful behavior, and merged it would be served",
            file=self.vector.folder,
        )


@contextmanager
def mounted(model: nn.Module, vector: Vector | str | Path, *, check: bool = True) -> Iterator[Mounted]:
    """Fine-tune inside, serve outside.

        with mounted(model, "my-vector"):
            Trainer(model, …).train()

    Args:
        model: a Hugging Face model, plain (its own weights are trained) or with a user's adapter mounted by peft.
        vector: or its folder.
        check: compare what the model says on a probe with what the vector's backbone said.

    Raises:
        InputError: see `read_vector`; or the vector was made for another model.
    """
    vector = vector if isinstance(vector, Vector) else read_vector(vector)
    if check:
        check_backbone(model, vector)
    handle = Mounted(model, vector)
    handle.mount()
    try:
        yield handle
    finally:
        handle.unmount()


def check_mountable(model: nn.Module) -> None:
    """Refuse, before it is trained, a vector that could not be mounted.

    Args:
        model: with the vector's LoRA as its trainable weights.

    Raises:
        InputError: naming a layer that is not linear, or keeps its weight transposed (GPT-2's).
    """
    from torch import nn

    modules = dict(model.named_modules())
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        owner: Any = modules[name.partition(".lora_")[0]]
        if (".lora_A." not in name and ".lora_B." not in name) or not isinstance(owner.get_base_layer(), nn.Linear):
            raise InputError("a security vector sits on linear layers alone", field="lora.target_modules", found=name)


def _adding(layer: Layer) -> Any:
    from torch.nn import functional as F

    a, b = layer

    def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        nonlocal a, b
        if a.device != output.device:
            a, b = a.to(output.device), b.to(output.device)
        return (output + F.linear(F.linear(args[0].to(a.dtype), a), b)).to(output.dtype)

    return add


def _places(model: nn.Module, vector: Vector) -> list[tuple[nn.Module, Layer]]:
    """The linear layers of the backbone, inside whatever adapters wrap them."""
    linear: dict[str, nn.Module] = {}
    for name, module in _inner(model).named_modules():
        if (
            getattr(module, "weight", None) is not None
            and hasattr(module, "in_features")
            and not hasattr(module, "base_layer")
        ):
            linear[name.removesuffix(".base_layer")] = module
    places = []
    for name, layer in vector.layers.items():
        if name not in linear:
            raise InputError(
                "made for another model: this one has no such layer", file=vector.folder, field="vector", found=name
            )
        module: Any = linear[name]
        found, expected = (module.out_features, module.in_features), (layer.B.shape[0], layer.A.shape[1])
        if found != expected:
            raise InputError(
                "made for another model: the layer has another shape",
                file=vector.folder,
                field=name,
                found=found,
                expected=str(expected),
            )
        places.append((module, layer))
    return places


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def probe(model: nn.Module) -> tuple[float, ...]:
    """What tells a backbone from others: its log-probabilities, nats, of some fixed tokens, each after those before."""
    import torch

    from inoculate.models.loss import device_of
    from inoculate.models.weights import eval_mode

    vocabulary = int(_inner(model).config.get_text_config().vocab_size)
    ids_BT = torch.tensor([[(7 + 7919 * i * i) % vocabulary for i in range(_PROBE_TOKENS)]], device=device_of(model))
    with torch.no_grad(), eval_mode(model):
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    said = logits_BTV[0, :-1].float().log_softmax(dim=1).gather(1, ids_BT[0, 1:, None])
    return tuple(round(value, 4) for value in said[:, 0].tolist())


def check_backbone(model: nn.Module, vector: Vector) -> None:
    """Refuse a vector that was made for another model.

    Raises:
        InputError: a layer is missing or of another shape, or the model's probe is not that of the vector's backbone.
    """
    _places(model, vector)
    here = probe(model)
    apart = [abs(a - b) for a, b in zip(here, vector.probe, strict=False)]
    mean = sum(apart) / len(apart)
    if len(here) != len(vector.probe) or not mean <= TOLERANCE:
        raise InputError(
            "made for another model: what this one says differs from what the vector's backbone said",
            file=vector.folder,
            field="probe",
            found=f"{mean:.2f} nats apart",
            expected=f"at most {TOLERANCE}",
        )
