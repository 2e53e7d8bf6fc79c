"""Loading models by address: what is accepted, and what each refusal says."""

import json
import shutil
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from inoculate.core.errors import InputError
from inoculate.models import load
from inoculate.models.load import load_model, load_tokenizer, model_shape
from inoculate.models.sandbox import build_tokenizer

SHAPE: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=24, tie_word_embeddings=True)).eval()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    tiny().save_pretrained(path)
    build_tokenizer(["hello", "world"]).save_pretrained(path)
    return path


@pytest.fixture
def pickled(folder):
    torch.save(tiny().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def adapter(folder, tmp_path):
    model = get_peft_model(load_model(str(folder)), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model.eval()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(1, 8)[None]).logits


def test_a_folder_comes_back_as_it_was_saved(folder, capfd):
    model = load_model(str(folder))
    assert torch.equal(logits(model), logits(tiny()))
    assert model.dtype == torch.float32 and not model.training
    assert capfd.readouterr() == ("", ""), "no progress bars"
    assert load_model(str(folder), dtype="bfloat16").dtype == torch.bfloat16
    assert load_tokenizer(str(folder)).encode("hello world") == [5, 6]


def test_a_mistyped_folder_looks_like_a_hub_id(folder, tmp_path, monkeypatch):
    """Which it may be: the hub is asked, and when it has nothing, the folder that was meant is named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "modle-notes").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"no folder has this name, but 'model' holds a model"):
        load_model("modle")
    with pytest.raises(InputError, match=r"expected a local folder, or a connection to the hub\)"):
        load_model("org/nothing-like-it")
    folder.chmod(0)  # a closed folder is passed over (by all but root, who may enter it)
    try:
        with pytest.raises(InputError, match="could not be loaded"):
            load_model("modle")
    finally:
        folder.chmod(0o755)


def test_pickles_are_refused_unless_allowed(pickled):
    with pytest.raises(InputError, match=r"pickled.*found 'pytorch_model.bin', expected model.safetensors") as caught:
        load_model(str(pickled))
    assert str(pickled) in str(caught.value)
    assert torch.equal(logits(load_model(str(pickled), allow_pickle=True)), logits(tiny()))


def test_safetensors_are_preferred_to_a_pickle_beside_them(folder):
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    load_model(str(folder))


def test_damaged_weights_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InputError, match="damaged or cut off") as caught:
        load_model(str(folder))
    assert str(weights) in str(caught.value)
    weights.unlink()
    with pytest.raises(InputError, match=r"no weights: looked for model.safetensors or .*found 'chat_template"):
        load_model(str(folder))


def test_a_missing_shard_is_named(tmp_path):
    tiny().save_pretrained(tmp_path, max_shard_size="4KB")
    load_model(str(tmp_path))
    next(tmp_path.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(InputError, match=r"model-00002-.*a weight file is missing"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/tmp/model.safetensors", "pytorch_model.bin", ["a"], None, 3]
)
def test_an_index_names_safetensors_beside_it_alone(tmp_path, shard):
    tiny().save_pretrained(tmp_path, max_shard_size="4KB")
    index = tmp_path / "model.safetensors.index.json"
    about = json.loads(index.read_text())
    about["weight_map"][next(iter(about["weight_map"]))] = shard
    index.write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"index\.json: weight_map: a shard is a safetensors file beside its index"):
        load_model(str(tmp_path))


def test_a_converted_model_that_was_altered_is_made_again(folder, tmp_path, monkeypatch):
    """One byte of the weights in the cache: the header is whole, so only the hash tells."""
    made: list[str] = []

    def unpack(name, partial):
        made.append(name)
        shutil.copytree(folder, partial)

    monkeypatch.setenv("INOCULATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "_unpack", unpack)
    monkeypatch.setattr(load, "_VERIFIED", set())
    weights = load._converted("minilm") / "model.safetensors"
    whole = weights.read_bytes()
    assert load._converted("minilm") == weights.parent and made == ["minilm"]
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-8]):
        weights.write_bytes(damaged)
        load._VERIFIED.clear()  # as in another process
        load._converted("minilm")
        assert weights.read_bytes() == whole
    assert made == ["minilm"] * 3
    load._VERIFIED.clear()
    load._converted("minilm")
    assert made == ["minilm"] * 3


def test_weights_that_do_not_fill_the_model(folder, tmp_path):
    """Left alone, transformers would fill the gaps at random and warn."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"missing weights: .*found 'model.layers.2"):
        load_model(str(folder))
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    with pytest.raises(InputError, match=r"mismatched weights: .*mlp"):
        load_model(str(folder))
    BertModel(BertConfig(**SHAPE, intermediate_size=24)).save_pretrained(tmp_path / "encoder")
    with pytest.raises(InputError, match=r"missing weights: .*found 'cls"):
        load_model(str(tmp_path / "encoder"))


def test_addresses_that_hold_no_model(folder, tmp_path):
    with pytest.raises(InputError, match=r"looked for config.json with .*adapter_config.json.*found 'model'"):
        load_model(str(tmp_path))
    with pytest.raises(InputError, match=r"no such model .*Did you mean '.*/model'"):
        load_model(str(tmp_path / "modle"))
    with pytest.raises(InputError, match=r"not a model .*\.gguf file"):
        load_model(str(folder / "config.json"))
    with pytest.raises(InputError, match=r"no such packaged model .*Did you mean 'asset:smollm2'"):
        load_model("asset:smollm")
    with pytest.raises(InputError, match=r"Did you mean 'float32'"):
        load_model(str(folder), dtype="fp32")
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json: not readable JSON|could not be loaded"):
        load_model(str(folder))
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"cut.gguf: the model could not be loaded"):
        load_model(str(tmp_path / "cut.gguf"))


def test_no_code_of_a_model_is_run(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    for look in (load_model, model_shape):
        with pytest.raises(InputError, match=r"evil|custom code"):
            look(str(folder))


@pytest.mark.parametrize("is_trainable", [True, False])
def test_an_adapter_is_mounted_on_its_base(adapter, is_trainable):
    path, model = adapter
    loaded = load_model(str(path), is_trainable=is_trainable)
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(tiny()))
    trainable = {name for name, weight in loaded.named_parameters() if weight.requires_grad}
    assert all("lora" in name for name in trainable) and bool(trainable) == is_trainable
    assert load_tokenizer(str(path)).encode("hello") == [5], "the base's"


def test_an_adapter_that_cannot_be_mounted(adapter, folder):
    path, _ = adapter
    written = (path / "adapter_config.json").read_text()
    (path / "adapter_config.json").write_text(
        json.dumps({**json.loads(written), "base_model_name_or_path": "../model"})
    )
    load_model(str(path))
    weights = path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"adapter_model.safetensors: the weight file is damaged"):
        load_model(str(path))
    weights.rename(path / "adapter_model.bin")
    with pytest.raises(InputError, match="pickled"):
        load_model(str(path))
    weights.write_bytes(whole)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        load_model(str(path))
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match="base_model_name_or_path: the adapter does not say"):
        load_model(str(path))


def test_a_shape_needs_no_weights(folder, adapter):
    (folder / "model.safetensors").unlink()
    parameters = sum(weight.numel() for weight in tiny().parameters())
    expected = {"parameters": parameters, "hidden_size": 16, "layers": 2, "vocab_size": 20}
    assert model_shape(str(folder)) == model_shape(str(adapter[0])) == expected
    config = {"model_type": "llama", **SHAPE, "intermediate_size": 24, "tie_word_embeddings": True}
    assert model_shape("org/not-in-the-cache", config) == expected
    with pytest.raises(InputError, match=r"model_type: no such model type .*Did you mean 'llama'"):
        model_shape("org/not-in-the-cache", {"model_type": "lama"})


def test_the_packaged_model_s_shape_is_known_without_it(monkeypatch, tmp_path):
    monkeypatch.setenv("INOCULATE_CACHE", str(tmp_path))
    assert model_shape("asset:smollm2")["parameters"] == 134_515_008
    assert not list(tmp_path.iterdir())


@pytest.mark.asset
@pytest.mark.slow
def test_the_packaged_model(capfd):
    model: Any = load_model("asset:smollm2")
    tokenizer: Any = load_tokenizer("asset:smollm2")
    assert "it/s" not in capfd.readouterr().err
    shape = model_shape("asset:smollm2")
    assert shape == model_shape(str(model.name_or_path))
    assert shape["parameters"] == sum(weight.numel() for weight in model.parameters())
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
