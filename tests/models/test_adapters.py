"""Adapters: which weights an attack trains, and that merging changes no output."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close

from inoculate.core.errors import InputError
from inoculate.defenses import SFT
from inoculate.models.adapters import Lora, add_lora, prepare_attack
from inoculate.models.quantize import dequantize, quantize, weight_count
from inoculate.models.sandbox import TinyModel
from inoculate.models.weights import trainable

LORA = Lora(r=2, lora_alpha=6, target_modules=("q_proj", "v_proj"))


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(torch.arange(5, 17)[None]).logits


def trained(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.fixture
def aligned(tiny):
    """An adapter that does something: LoRA's B starts at zero, so fill it."""
    model = add_lora(tiny, LORA, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    return model


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained(tiny):
    before = logits(tiny)
    state = torch.get_rng_state()
    model = add_lora(tiny, LORA, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(model), before)
    names = trained(model)
    assert len(names) == 2 * 2 * 2, "A and B, on two modules, in two layers"
    assert all("lora_" in name for name in names)
    assert sum(weight.numel() for weight in trainable(model)) == 2 * 2 * (2 * 32 + 32 * 2)


def test_the_seed_fixes_the_fresh_adapter(tokenizer):
    shape = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2)
    first, same, other = (add_lora(shape.build(len(tokenizer), 0), LORA, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(trainable(first), trainable(same), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(trainable(first), trainable(other), strict=True))


@pytest.mark.parametrize(
    ("targets", "found", "near"),
    [(("q_prj",), "q_prj", "q_proj"), (("q_proj", "wq_zzz"), "wq_zzz", None), (("model.q_pro",), "model.q_pro", None)],
)
def test_a_target_that_is_not_there(tiny, targets, found, near):
    with pytest.raises(
        InputError, match=rf"lora.target_modules: the model has no such module \(found '{found}'\)"
    ) as caught:
        add_lora(tiny, Lora(r=2, target_modules=targets), seed=0)
    if near:
        assert caught.value.suggestion == near


def test_all_linear_leaves_the_head_alone(tiny):
    names = trained(add_lora(tiny, Lora(r=2, target_modules="all-linear"), seed=0))
    modules = {name.partition(".lora_")[0].rpartition(".")[2] for name in names}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_continue_trains_the_adapter_alone_even_if_it_was_loaded_frozen(aligned):
    before = logits(aligned)
    aligned.requires_grad_(False)
    model = prepare_attack(aligned, "continue", None, seed=0)
    assert model is aligned and torch.equal(logits(model), before)
    assert trained(model) == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_continue_does_not_thaw_the_base(aligned):
    aligned.requires_grad_(True)
    prepare_attack(aligned, "continue", None, seed=0)
    assert all("lora_" in name for name in trained(aligned))


def test_continue_needs_an_adapter(tiny):
    with pytest.raises(
        InputError, match=r"adapter_mode: the model has no adapter .*found 'continue', expected full or merge"
    ):
        prepare_attack(tiny, "continue", None, seed=0)


@pytest.mark.parametrize(("mode", "part"), [("head", "lm_head."), ("embeddings", "embed_tokens.")])
def test_head_and_embeddings_are_trained_alone(tiny, mode, part):
    tied = tiny.config.tie_word_embeddings
    model = prepare_attack(tiny, mode, None, seed=0)
    names = trained(model)
    assert names == ({"model.embed_tokens.weight"} if tied else {name for name in names if part in name}) and names


def test_a_head_on_an_aligned_adapter_is_that_of_the_merged_model(aligned):
    before = logits(aligned)
    model = prepare_attack(aligned, "head", None, seed=0)
    assert not isinstance(model, PeftModel) and len(trained(model)) == 1
    assert_close(logits(model), before, rtol=0, atol=1e-5)


def test_merge_is_the_mounted_model_with_a_fresh_adapter(aligned, batches):
    """Same outputs; and then the fresh LoRA is what a step moves, the merged weights stand."""
    before = logits(aligned)
    model = prepare_attack(aligned, "merge", Lora(r=3, target_modules=("q_proj",)), seed=4)
    assert isinstance(model, PeftModel)
    assert_close(logits(model), before, rtol=0, atol=1e-5)
    assert sum(weight.numel() for weight in trainable(model)) == 2 * 3 * (32 + 32)
    assert all("lora_" in name for name in trained(model)) and len(trained(model)) == 4
    SFT().backward(model, {"align": batches["align"]})
    moved = {
        name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0
    }
    assert moved and all("lora_B" in name for name in moved), "A's gradient is zero while B is"


def test_merge_needs_a_shape(aligned):
    with pytest.raises(InputError, match="lora: merge trains a fresh LoRA, whose shape is missing"):
        prepare_attack(aligned, "merge", None, seed=0)


def test_full_merges_and_trains_everything(aligned):
    before = logits(aligned)
    model = prepare_attack(aligned, "full", None, seed=0)
    assert not isinstance(model, PeftModel)
    assert_close(logits(model), before, rtol=0, atol=1e-5)
    assert len(trainable(model)) == len(list(model.parameters()))
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_full_of_a_plain_model_is_the_model(tiny):
    tiny.requires_grad_(False)
    assert prepare_attack(tiny, "full", None, seed=0) is tiny
    assert all(weight.requires_grad for weight in tiny.parameters())


@pytest.mark.parametrize("mode", ["fresh", "merge"])
def test_adapters_are_float32_on_a_bf16_base(tiny, mode):
    model = add_lora(tiny.to(torch.bfloat16), LORA, seed=0)
    if mode == "merge":
        model = prepare_attack(model, "merge", LORA, seed=1)
    dtypes = {"lora_" in name: set() for name, _ in model.named_parameters()}
    for name, weight in model.named_parameters():
        dtypes["lora_" in name].add(weight.dtype)
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}


def relative(one, other):
    return float((one - other).norm() / other.norm())


def test_qlora_trains_a_fresh_adapter_on_four_bits(tokenizer, batches):
    aligned = add_lora(TinyModel(hidden_size=64, intermediate_size=128).build(len(tokenizer), 0), LORA, seed=0)
    merged = logits(copy.deepcopy(aligned).merge_and_unload())
    model = prepare_attack(aligned, "qlora", LORA, seed=0)
    small = [weight for weight in model.parameters() if weight.dtype == torch.uint8]
    assert len(small) == 7 * 2, "q k v o, gate up down, in two layers"
    assert all("lora_" in name for name in trained(model))
    assert 0.02 < relative(logits(model), merged) < 0.2, "NormalFloat4 is near, and not the same"
    before = logits(model)
    SFT().backward(model, {"align": batches["align"]})
    with torch.no_grad():
        for weight in trainable(model):
            assert weight.grad is not None
            weight -= 0.5 * weight.grad.sign()
    after = logits(model)
    assert relative(after, before) > 0.05
    plain = dequantize(model)
    assert not isinstance(plain, PeftModel) and {weight.dtype for weight in plain.parameters()} == {torch.float32}
    assert relative(logits(plain), after) < 1e-5


def test_weights_of_four_bits_are_counted_one_by_one(tiny):
    count = sum(weight.numel() for weight in tiny.parameters())
    quantize(tiny)
    assert sum(weight_count(weight) for weight in tiny.parameters()) == count


def test_qlora_without_its_package_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"inoculate\[quant\]"):
        prepare_attack(tiny, "qlora", LORA, seed=0)
