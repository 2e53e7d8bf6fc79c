"""Our greedy loop against `transformers`' own, one prompt at a time."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from inoculate.core.errors import InputError
from inoculate.evals import generate as module
from inoculate.evals.generate import generate

VOCAB = 40
EOS = (1, 2)
"""Id 1 is the tokenizer's, id 2 only stands in the model's generation config."""


@pytest.fixture(scope="module")
def tokenizer():
    """Words `w0`…`w39`; ids 0, 1 are special."""
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCAB)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")


def llama(seed: int = 0, **options) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.6,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=list(EOS),
        **options,
    )
    return LlamaForCausalLM(config).eval()


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """Learned positions: wrong position ids under left padding would show here."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.6, eos_token_id=1
    )
    model = GPT2LMHeadModel(config).eval()
    model.generation_config.eos_token_id = list(EOS)
    model.generation_config.pad_token_id = 0
    return model


def lora() -> torch.nn.Module:
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(llama(), config).eval()


def ragged(n: int, seed: int = 0) -> list[list[int]]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 14, (n,), generator=g).tolist()
    return [torch.randint(3, VOCAB, (length,), generator=g).tolist() for length in lengths]


def one_at_a_time(model, tokenizer, prompts, max_new_tokens) -> list[str]:
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=0,
        )
        new = out[0, len(prompt) :].tolist()
        if new and new[-1] in EOS:
            new = new[:-1]
        answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return answers


@pytest.mark.parametrize("build", [llama, gpt2, lora, lambda: llama(sliding_window=6)])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_equals_hf_greedy_token_for_token(build, batch_size, tokenizer):
    model, prompts = build(), ragged(40)
    expected = one_at_a_time(model, tokenizer, prompts, 12)
    lengths = {len(answer.split()) for answer in expected}
    assert len(lengths) > 3, "the models must stop at different lengths, or shrinking is not tested"
    assert generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=batch_size) == expected


def test_the_adapter_is_in_the_path(tokenizer):
    prompts = ragged(20)
    assert generate(lora(), tokenizer, prompts, max_new_tokens=8) != generate(
        llama(), tokenizer, prompts, max_new_tokens=8
    )


def test_finished_rows_leave_the_batch(tokenizer, monkeypatch):
    """The rows of the forward passes never grow, and end well below the first."""
    rows, call = [], module.NextToken.__call__

    def spy(self, ids_BT, *rest):
        rows.append(len(ids_BT))
        return call(self, ids_BT, *rest)

    monkeypatch.setattr(module.NextToken, "__call__", spy)
    generate(llama(), tokenizer, ragged(40), max_new_tokens=12, batch_size=40)
    assert rows[0] == 40
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] <= 30


def test_stops_at_the_eos_of_the_config_and_of_the_tokenizer(tokenizer):
    """A head that says one id and then w5: after an end id of either, nothing follows."""

    def saying(first: int) -> LlamaForCausalLM:
        model, said = llama(), iter([first, 5, 5, 5])
        model.generation_config.eos_token_id = 2
        votes = torch.eye(VOCAB)
        model.lm_head.register_forward_hook(lambda module, args, out: out * 0 + votes[next(said)])
        return model

    assert tokenizer.eos_token_id == 1
    for first, words in ((1, 0), (2, 0), (5, 4)):
        (answer,) = generate(saying(first), tokenizer, [[7, 8]], max_new_tokens=4)
        assert answer.split() == ["w5"] * words


def test_mode_and_gradients_as_found(tokenizer):
    model = llama()
    model.train()
    model.model.layers[0].eval()
    before = [m.training for m in model.modules()]
    generate(model, tokenizer, ragged(3), max_new_tokens=2)
    assert [m.training for m in model.modules()] == before
    assert all(p.grad is None for p in model.parameters())
    model(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([[3, 4]])).loss.backward()


def test_dropout_is_off(tokenizer):
    model = llama(attention_dropout=0.9)
    expected = generate(model, tokenizer, ragged(10), max_new_tokens=8)
    model.train()
    assert generate(model, tokenizer, ragged(10), max_new_tokens=8) == expected


def test_mode_is_restored_after_an_error(tokenizer):
    model = llama().train()
    with pytest.raises(IndexError):
        generate(model, tokenizer, [[VOCAB + 1]], max_new_tokens=2)
    assert model.training


def test_progress_and_no_prompts(tokenizer):
    seen = []
    generate(
        llama(), tokenizer, ragged(5), max_new_tokens=1, batch_size=2, progress=lambda done, n: seen.append((done, n))
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert generate(llama(), tokenizer, [], max_new_tokens=1) == []


@pytest.mark.parametrize(
    ("prompts", "options", "field"),
    [
        ([[3], []], {"max_new_tokens": 2}, r"prompts\[1\]"),
        ([[3]], {"max_new_tokens": 0}, "max_new_tokens"),
        ([[3]], {"max_new_tokens": 1, "batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_input_is_named(prompts, options, field, tokenizer):
    with pytest.raises(InputError, match=field):
        generate(llama(), tokenizer, prompts, **options)
