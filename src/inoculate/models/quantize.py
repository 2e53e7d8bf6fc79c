# pyright: reportPrivateImportUsage=false
"""4-bit weights through bitsandbytes, as attackers use them who have one small GPU.

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314, §3: NormalFloat4 with its
constants quantized once more; the LoRA on top, the norms, the embeddings and the head keep their precision.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from inoculate.core.errors import InputError


def quantize(model: Any) -> None:
    """Put 4-bit layers in the place of a model's linear ones, in place and on its device; the head stays.

    Raises:
        InputError: without bitsandbytes.
    """
    bnb = _bitsandbytes()
    head = model.get_output_embeddings()
    linear = [(name, one) for name, one in model.named_modules() if type(one) is nn.Linear and one is not head]
    for name, one in linear:
        small = bnb.nn.Linear4bit(
            one.in_features,
            one.out_features,
            bias=one.bias is not None,
            compute_dtype=one.weight.dtype,
            compress_statistics=True,
            quant_type="nf4",
        )
        small.support_avx512bf16_for_cpu = False  # else answering repacks weights as no training can read them
        small.load_state_dict(one.state_dict())
        _put(model, name, small.to(one.weight.device))
    model.requires_grad_(False)


def dequantize(model: Any) -> nn.Module:
    """The model under a LoRA on 4-bit layers as a plain one: what it computes, with nothing rounded again."""
    from peft.tuners.lora import LoraLayer

    bnb, plain = _bitsandbytes(), model.get_base_model()
    layers: list[tuple[str, Any]] = list(plain.named_modules())
    for name, layer in layers:
        base: Any = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        if not isinstance(base, bnb.nn.Linear4bit) or name.endswith(".base_layer"):
            continue
        weight_OI = bnb.functional.dequantize_4bit(base.weight.data, base.weight.quant_state).to(base.compute_dtype)
        if isinstance(layer, LoraLayer):
            learned: Any = layer
            weight_OI = weight_OI + sum(learned.get_delta_weight(adapter) for adapter in model.active_adapters)
        linear = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight_OI.to(base.compute_dtype).contiguous())
        if base.bias is not None:
            linear.bias = base.bias
        _put(plain, name, linear)
    return plain


def weight_count(weight: Tensor) -> int:
    """How many weights a tensor holds; two of them share a byte where they are quantized."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else state.shape.numel()


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    above, _, own = name.rpartition(".")
    setattr(model.get_submodule(above), own, module)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError:
        raise InputError(
            "a package is missing", field="adapter_mode", found="qlora", expected="pip install 'inoculate[quant]'"
        ) from None
    return bitsandbytes
