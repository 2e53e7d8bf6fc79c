"""The size of a model from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from inoculate.core.errors import InputError
from inoculate.models.adapters import Lora, add_lora
from inoculate.models.checkpoint import (
    ASSET,
    CONFIG,
    Located,
    base_of,
    explained,
    locate,
    named,
    packaged_model,
    read_json,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What has to be known of a packaged model, so that a plan downloads nothing.
_CONFIGS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "smollm2": {
            "model_type": "llama",
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        }
    }
)

_MOST_LAYERS = 10_000
"""Beyond it a configuration is a mistake, and to build it layer by layer would not end."""
_OFFLINE = "a connection to the hub, a local folder with config.json, or the shape of the model under base.shape"


def model_shape(address: str, expected: Mapping[str, Any] | None = None, lora: Lora | None = None) -> dict[str, int]:
    """Size of a model from its configuration alone, built on the meta device: no weight is read or downloaded.

    Args:
        expected: a configuration with its `model_type`, used for a hub id that is not in the local cache.
        lora: an adapter to mount, to see whether its target modules exist.

    Returns:
        `parameters` (tied weights counted once), `hidden_size`, `layers`, `vocab_size`; with `lora` also
        `adapter_parameters`.

    Raises:
        InputError: if there is no configuration, or the model lacks a target module.
    """
    import torch

    model = _built(address, expected)
    text = model.config.get_text_config()
    shape = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "hidden_size": text.hidden_size,
        "layers": text.num_hidden_layers,
        "vocab_size": text.vocab_size,
    }
    if lora is None:
        return shape
    with torch.device("meta"):
        adapted = add_lora(model, lora, seed=0)
    return {**shape, "adapter_parameters": sum(w.numel() for w in adapted.parameters() if w.requires_grad)}


def empty_model(address: str, expected: Mapping[str, Any] | None = None, dtype: str = "float32") -> Any:
    """The model that stands at an address, on the meta device: weights without numbers, the adapter of an adapter's
    folder mounted and trainable. No weight is read or downloaded, and a local folder need not hold any.

    Args:
        expected: as of `model_shape`.
        dtype: of the weights; an adapter's stay in float32.

    Raises:
        InputError: if there is no configuration of a causal language model.
    """
    model = _built(address, expected, dtype)
    place = None if address.startswith(ASSET) else locate(address)
    return model if place is None or place.kind != "adapter" else _adapted(model, place.path)


def _built(address: str, expected: Mapping[str, Any] | None, dtype: str = "float32") -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    config = _config(address, expected)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise InputError("too many layers", file=address, field="num_hidden_layers", found=layers)
    with _sensible(address), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=getattr(torch, dtype))


@contextmanager
def _sensible(address: str) -> Iterator[None]:
    """A configuration is a stranger's text, and transformers fails in many ways over odd values in it."""
    from huggingface_hub.errors import StrictDataclassError

    odd = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
    try:
        yield
    except (*odd, StrictDataclassError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"not the configuration of a causal language model: {why[:300]}", file=address) from None


def _adapted(model: Any, folder: Any) -> Any:
    import torch
    from peft import PeftConfig, get_peft_model

    with explained(Located("adapter", str(folder), folder), "adapter's configuration"), torch.device("meta"):
        adapter = PeftConfig.from_pretrained(str(folder))
        adapter.inference_mode = False
        return get_peft_model(model, adapter)


def _config(address: str, expected: Mapping[str, Any] | None) -> PretrainedConfig:
    from transformers import AutoConfig

    if address.startswith(ASSET):
        return _described(_CONFIGS[packaged_model(address)], address)
    place = locate(address)
    if place.kind == "adapter" and place.path is not None:
        return _config(base_of(place.path)[0], expected)
    name, options = named(place, None)
    if place.kind == "hub" and expected is not None:
        try:
            return AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError):
            return _described(expected, address)
    if place.kind == "folder" and place.path is not None:
        read_json(place.path / CONFIG)
    with explained(place, "configuration", _OFFLINE):
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **options)


def _described(config: Mapping[str, Any], address: str) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig

    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise InputError(
            "no such model type", file=address, field="model_type", found=model_type, known=CONFIG_MAPPING.keys()
        )
    with _sensible(address):
        return AutoConfig.for_model(model_type, **{key: value for key, value in config.items() if key != "model_type"})
