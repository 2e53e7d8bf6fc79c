"""Security vectors on a model: what peft would compute, exactly gone after, and refused where they do not belong."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from inoculate.core.errors import InputError
from inoculate.models.adapters import VECTOR, Lora, add_lora, add_vector
from inoculate.models.vectors import ABOUT, Mounted, check_backbone, check_mountable, mounted, probe, read_vector
from inoculate.models.weights import loss_and_grad

LORA = Lora(r=4, lora_alpha=8, target_modules="all-linear")


def write(folder, model, said):
    """A vector with weights of some size, as the stage writes it."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    (folder / ABOUT).write_text(json.dumps({"probe": said}))
    return folder


@pytest.fixture
def folder(tiny, tmp_path):
    base = copy.deepcopy(tiny)
    return write(tmp_path / "vector", add_vector(base, LORA, seed=0), probe(tiny))


@pytest.fixture
def batch(batches):
    return batches["harmful"][0]


def logits(model, batch):
    with torch.no_grad():
        return model(**{name: t for name, t in batch.items() if name != "labels"}).logits


def test_mounted_is_what_peft_computes(tiny, folder, batch):
    before = logits(tiny, batch)
    with mounted(tiny, folder):
        ours = logits(tiny, batch)
    theirs = logits(PeftModel.from_pretrained(copy.deepcopy(tiny), folder), batch)
    assert_close(ours, theirs)
    assert (ours - before).abs().max() > 0.1


def test_unmounted_is_bit_equal_and_leaves_nothing(tiny, folder, batch):
    before, names = logits(tiny, batch), list(tiny.state_dict())
    with mounted(tiny, folder) as handle:
        assert handle.on and list(tiny.state_dict()) == names
        with handle.unmounted():
            assert torch.equal(logits(tiny, batch), before)
        assert handle.on and not torch.equal(logits(tiny, batch), before)
    assert torch.equal(logits(tiny, batch), before)
    assert not any(module._forward_hooks for module in tiny.modules())


def test_it_is_gone_after_an_error(tiny, folder, batch):
    before = logits(tiny, batch)
    with pytest.raises(RuntimeError), mounted(tiny, folder):
        raise RuntimeError
    assert torch.equal(logits(tiny, batch), before)


def test_gradients_flow_through_it_and_none_into_it(tiny, folder, batch):
    """The backbone's gradient is that of peft's own layers, with the adapter frozen."""
    vector = read_vector(folder)
    kept = {name: [part.clone() for part in layer] for name, layer in vector.layers.items()}
    with mounted(tiny, vector):
        _, ours = loss_and_grad(tiny, batch)
    other = PeftModel.from_pretrained(copy.deepcopy(tiny), folder)
    for name, weight in other.named_parameters():
        weight.requires_grad_("lora_" not in name)
    _, theirs = loss_and_grad(other, batch)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)
    first = ours[1]
    _, without = loss_and_grad(tiny, batch)
    assert (first - without[1]).abs().max() > 1e-4  # earlier layers see the later layers' vector
    for name, layer in vector.layers.items():
        for part, before in zip(layer, kept[name], strict=True):
            assert part.grad is None and not part.requires_grad and torch.equal(part, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_a_users_lora(tiny, folder, batch, dtype):
    """The user's adapter trains, the backbone stays, and the vector sits on the layers inside."""
    model = add_lora(copy.deepcopy(tiny).to(dtype), Lora(r=2, target_modules=("q_proj",)), seed=0)
    alone = logits(tiny.to(dtype), batch)
    with mounted(tiny, folder):
        expected = logits(tiny, batch)
    with mounted(model, folder):
        assert logits(model, batch).dtype == dtype
        assert_close(logits(model, batch), expected)
        _, grads = loss_and_grad(model, batch)
    assert torch.equal(logits(model, batch), alone)
    assert len(grads) == 4 and any(grad.abs().sum() > 0 for grad in grads)


def test_trained_beside_an_aligned_adapter(tiny, batch, tmp_path):
    """The backbone is base and adapter together; the vector alone is trainable, and saved apart."""
    aligned = add_lora(copy.deepcopy(tiny), Lora(r=2, target_modules=("q_proj",)), seed=0)
    with torch.no_grad():
        for name, weight in aligned.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5, generator=torch.Generator().manual_seed(2))
    said, before = probe(aligned), logits(aligned, batch)
    model = add_vector(copy.deepcopy(aligned), LORA, seed=0)
    assert_close(logits(model, batch), before)
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trainable and all(f".{VECTOR}." in name for name in trainable)
    assert not any("lora_A.default.lora" in name for name in trainable)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and "lora_B" in name:
                weight.normal_(std=0.1)
    together = logits(model, batch)
    model.save_pretrained(tmp_path, selected_adapters=[VECTOR])
    (tmp_path / VECTOR / ABOUT).write_text(json.dumps({"probe": said}))
    with mounted(aligned, tmp_path / VECTOR):
        assert_close(logits(aligned, batch), together)
    merged = aligned.merge_and_unload()
    with mounted(merged, tmp_path / VECTOR):  # the probe knows the merged model as the same backbone
        assert_close(logits(merged, batch), together)


def test_it_is_never_merged(tiny, folder):
    with pytest.raises(InputError, match="never merged"):
        Mounted(tiny, read_vector(folder)).merge()


def test_the_probe_knows_the_backbone(tiny, folder):
    check_backbone(tiny, read_vector(folder))
    check_backbone(copy.deepcopy(tiny).to(torch.bfloat16), read_vector(folder))
    with torch.no_grad():
        tiny.lm_head.weight.mul_(3)
    with pytest.raises(InputError, match=r"made for another model: what this one says .* nats apart"):
        check_backbone(tiny, read_vector(folder))


def edit(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def without(folder, name):
    (folder / name).unlink()


def rank_changed(folder):
    edit(folder, r=5)


def not_finite(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")


def half_missing(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors[next(name for name in tensors if "lora_B" in name)]
    save_file(tensors, folder / "adapter_model.safetensors")


def cut_off(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def renamed_layer(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k.replace("q_proj", "query"): v for k, v in tensors.items()}, folder / "adapter_model.safetensors")


def one_dimensional(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    save_file(tensors | {name: tensors[name].flatten()}, folder / "adapter_model.safetensors")


def diverged(folder):
    file = folder / ABOUT
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "diverged"}))


def no_probe(folder):
    (folder / ABOUT).write_text("{}")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shutil.rmtree, "not a security vector .found 'no such folder'"),
        (lambda f: without(f, "adapter_config.json"), "not a security vector"),
        (lambda f: without(f, ABOUT), "an adapter, but not a security vector"),
        (lambda f: without(f, "adapter_model.safetensors"), "no weights: looked for adapter_model.safetensors"),
        (cut_off, "damaged or cut off"),
        (rank_changed, r"not of the rank that is configured.*A \(4, 64\), B .*expected rank 5"),
        (half_missing, "B None"),
        (not_finite, "not finite"),
        (lambda f: edit(f, use_dora=True), "use_dora: a security vector is a plain LoRA"),
        (lambda f: edit(f, peft_type="IA3"), "peft_type: not a LoRA"),
        (renamed_layer, "made for another model: this one has no such layer"),
        (one_dimensional, "not of the rank"),
        (diverged, "status: the training of this vector diverged"),
        (no_probe, "the probe of the backbone is missing"),
    ],
)
def test_refuses(tiny, folder, break_it, message):
    break_it(folder)
    with pytest.raises(InputError, match=message), mounted(tiny, folder):
        pass


def test_what_could_not_be_mounted_is_not_trained(tiny):
    check_mountable(add_vector(copy.deepcopy(tiny), LORA, seed=0))
    embedding = add_vector(copy.deepcopy(tiny), Lora(r=2, target_modules=("q_proj", "embed_tokens")), seed=0)
    with pytest.raises(InputError, match=r"lora.target_modules: a security vector sits on linear layers alone"):
        check_mountable(embedding)


def test_refuses_another_shape(folder, tokenizer):
    from inoculate.models.sandbox import TinyModel

    other = TinyModel(hidden_size=48, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)
    with pytest.raises(InputError, match="made for another model: the layer has another shape"), mounted(other, folder):
        pass
