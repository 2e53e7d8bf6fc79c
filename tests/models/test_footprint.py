"""Footprints: against hand counts, against real tensors, and against torch's own hooks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from inoculate import SFT, Booster, Training
from inoculate.data.batches import collate
from inoculate.data.templates import Encoded
from inoculate.defenses import MLAC, Lisa, RepNoise, SecurityVector, Vaccine
from inoculate.evals.cost import generation_cost
from inoculate.models.adapters import Lora, add_lora
from inoculate.models.footprint import held_bytes, traced, without_numbers
from inoculate.models.loss import loss_of
from inoculate.training.cost import Length, step_cost

D, F, L, V, B, T = 32, 48, 2, 40, 3, 10
LINEAR = L * (4 * D * D + 3 * D * F) + V * D
"""Weights of matrices in the little Llama below; the head is one of them, the embedding is looked up."""
FLOAT, MOMENTS = 4, 8


def llama(lora: Lora | None = None, device: str = "meta") -> nn.Module:
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=L,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config)
        return model if lora is None else add_lora(model, lora, seed=0)


def cost(model, defense, **training):
    lengths = dict.fromkeys(defense.needs, Length(T))
    chosen = Training(per_device_train_batch_size=B, packing=False, **training)
    return step_cost(without_numbers(model), defense, chosen, lengths, T)


def attention(passes: int) -> int:
    """FLOPs of scores and sums in L layers: `passes` products of [T, T, D] for every row (all heads together)."""
    return L * B * passes * 2 * T * T * D


def test_full_training_is_six_flops_to_a_weight_and_token():
    """Forward 2 N, backward 4 N for each token. The head sees all but the last, and the first layer's input is a
    gather whose gradient is no product; attention: 2 products forward, 5 backward (scores are made again)."""
    tokens = B * T
    head = 6 * V * D * B * (T - 1)
    body = 6 * (LINEAR - V * D) * tokens
    assert cost(llama(), SFT()).flops == body + head + attention(2 + 5)


def test_lora_trains_without_the_frozen_weights_gradients():
    """A frozen weight costs 2 forward and 2 back to its input; A and B cost 6 each."""
    lora, r = Lora(r=4, target_modules=("q_proj", "v_proj")), 4
    adapter = 2 * L * 2 * D * r
    found = cost(llama(lora), SFT())
    assert found.gradients == adapter * FLOAT
    full = cost(llama(), SFT()).flops
    # Less: 2 FLOPs for the gradient of every frozen matrix. And the input of the first layer asks for no gradient: not of
    # q, k and v there, nor of A.
    tokens = B * T
    first = 2 * tokens * (3 * D * D) + 2 * tokens * 2 * D * r
    saved = 2 * tokens * (LINEAR - V * D) + 2 * B * (T - 1) * V * D + first
    assert found.flops == full - saved + 6 * adapter * tokens


@pytest.mark.parametrize(("optim", "kept"), [("adamw_torch", MOMENTS), ("sgd", 0)])
def test_optimizer_state_is_counted_by_the_optimizer(optim, kept):
    model = llama()
    tensors, weights = len(list(model.parameters())), sum(w.numel() for w in model.parameters())
    found = cost(model, SFT(), optim=optim)
    steps = FLOAT * tensors if kept else 0  # AdamW's own count of steps, one number to a tensor
    assert (found.gradients, found.optimizer) == (weights * FLOAT, weights * kept + steps)


def test_booster_is_three_steps_and_three_copies():
    """Its peak meets, beside what SFT holds, ∇f, ∇h and the weights as they were."""
    model = llama(Lora(r=4))
    copies = 3 * sum(w.numel() for w in model.parameters() if w.requires_grad) * FLOAT
    found = cost(model, Booster())
    assert found.flops == 3 * found.sft_flops
    assert 0.9 * copies <= found.beyond_sft <= 1.6 * copies


def test_micro_batches_cost_each_its_share():
    one, two = (cost(llama(), Booster(), gradient_accumulation_steps=n) for n in (1, 2))
    assert two.flops == 2 * one.flops
    assert two.peak - one.peak == one.gradients


def test_checkpointing_holds_less_and_computes_more():
    found = {}
    for on in (False, True):
        model = llama()
        if on:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        found[on] = cost(model, SFT())
    assert found[True].activations < 0.5 * found[False].activations
    assert 1.2 * found[False].flops < found[True].flops < 4 / 3 * found[False].flops


def test_bf16_holds_half_the_weights():
    whole = llama()
    half = llama().to(torch.bfloat16)
    assert 2 * held_bytes(half.parameters()) == held_bytes(whole.parameters())
    assert cost(half, SFT()).activations < 0.7 * cost(whole, SFT()).activations


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "defense",
    [SFT(), Booster(), Vaccine(), RepNoise(), Lisa(), SecurityVector(), MLAC(inner_steps=1)],
    ids=lambda d: d.name,
)
def test_a_step_without_numbers_is_the_real_step(defense, checkpointing):
    """FLOPs and the peak of the defense's own code, to the byte."""
    if checkpointing and defense.name == "mlac":
        pytest.skip("refuses checkpointing")
    found = []
    for numbers in (True, False):
        model = llama(Lora(r=4), device="cpu").train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        model = model if numbers else without_numbers(model)
        batches = {}
        for i, (role, count) in enumerate(defense.needs.items()):
            batches[role] = [collate([Encoded([1] + [3 + i] * (T - 1), 1)] * B, "padded", 0)] * count
        with traced(model) as footprint:
            defense.backward(model, batches)
        found.append((footprint.flops, footprint.peak))
    assert found[0] == found[1]
    assert min(found[0]) > 0


def test_activations_are_what_autograd_saved():
    model = llama(device="cpu")
    batch = collate([Encoded([1] * T, 1)] * B, "padded", 0)
    weights = {w.untyped_storage().data_ptr() for w in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model, batch)
    found = cost(llama(), SFT()).activations
    assert loss.requires_grad
    assert sum(saved.values()) == pytest.approx(found, rel=0.05)


def test_tied_weights_stay_one():
    with torch.device("meta"):
        tied = LlamaForCausalLM(LlamaConfig(vocab_size=V, hidden_size=D, num_hidden_layers=1, tie_word_embeddings=True))
    before = sum(w.numel() for w in tied.parameters())
    assert sum(w.numel() for w in without_numbers(tied).parameters()) == before


def test_generation_is_two_flops_to_a_weight_and_token():
    """Prompts of P tokens, N new: P + N − 1 tokens pass the body, N positions pass the head."""
    rows, prompt, new = 6, 8, 5
    found = generation_cost(without_numbers(llama()), rows, prompt, new, batch_size=3)
    body, head = LINEAR - V * D, V * D
    products = 2 * rows * (body * (prompt + new - 1) + head * new)
    read = range(prompt + 1, prompt + new)  # what each new token looks at: products of [1, seen, D], twice
    middle = prompt + new // 2
    assert sum(read) / len(read) == pytest.approx(middle, abs=1)
    attended = L * rows * 2 * 2 * D * (prompt * prompt + (new - 1) * middle)
    assert found.flops == products + attended
    assert found.bytes_read == 2 * new * LINEAR * FLOAT + 2 * new * FLOAT * (V * D + (2 * L + 1) * D)
