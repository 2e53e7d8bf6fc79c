"""One loss, whatever the layout: padded, unmasked, packed; and never over padding or prompts."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from inoculate.data.batches import collate, pad
from inoculate.models import loss as loss_module
from inoculate.models.adapters import Lora, add_lora
from inoculate.models.loss import loss_of
from inoculate.models.packing import can_pack, packed_attention
from inoculate.models.weights import loss_and_grad


@pytest.fixture
def ragged(rows):
    picked = [*rows["align"][:3], *rows["harmful"][:3]]
    assert len({len(row.ids) for row in picked}) > 1
    return picked


def test_is_transformers_own_loss(tiny, ragged):
    batch = pad(ragged, 0)
    assert_close(loss_of(tiny, batch), tiny(**batch).loss)


@pytest.mark.parametrize("layout", ["causal", "varlen"])
def test_layouts_agree(tiny, ragged, layout):
    loss, grads = loss_and_grad(tiny, collate(ragged, "padded", 0))
    with packed_attention(tiny):
        other_loss, other_grads = loss_and_grad(tiny, collate(ragged, layout, 0))
    assert other_loss == pytest.approx(loss, rel=1e-6)
    for mine, theirs in zip(other_grads, grads, strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_packed_sequences_do_not_see_each_other(tiny, ragged):
    """Changing one sequence's prompt changes no logit of another."""
    batch = collate(ragged, "varlen", 0)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, 1] += 1
    edge = len(ragged[0].ids)
    with packed_attention(tiny), torch.no_grad():
        before, after = (
            tiny(**{k: v for k, v in b.items() if k != "labels"}, use_cache=False).logits for b in (batch, changed)
        )
    assert torch.equal(before[0, edge:], after[0, edge:])
    assert not torch.equal(before[0, :edge], after[0, :edge])


def test_more_padding_changes_nothing(tiny, ragged):
    batch = pad(ragged, 0)
    wide = {
        name: torch.nn.functional.pad(tensor, (0, 9), value=-100 if name == "labels" else 0)
        for name, tensor in batch.items()
    }
    assert_close(loss_of(tiny, wide), loss_of(tiny, batch))


def test_grouped_query_attention_and_lora_pack_too(tokenizer, ragged):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model = add_lora(LlamaForCausalLM(config), Lora(r=2), seed=0)
    loss = loss_of(model, pad(ragged, 0))
    with packed_attention(model):
        assert_close(loss_of(model, collate(ragged, "varlen", 0)), loss)


@pytest.fixture
def large(monkeypatch):
    """Any logits are large: the head sees labeled positions alone, and the loss is taken in pieces of three rows."""
    monkeypatch.setattr(loss_module, "_CHUNK", 0)
    monkeypatch.setattr(loss_module, "_rows", lambda logits_NV: 3)


@pytest.mark.parametrize(("rows", "vocabulary", "pieces"), [(1000, 100, 1), (1000, 50_000, 50), (16_384, 128_000, 64)])
def test_logits_are_worked_on_in_few_pieces(rows, vocabulary, pieces):
    """A million logits at a time, which fit a processor's cache; never more than 64 pieces."""
    logits = torch.empty(rows, vocabulary, device="meta")
    assert len(logits.split(loss_module._rows(logits))) == pieces


@pytest.mark.parametrize("layout", ["padded", "causal", "varlen"])
def test_large_logits_are_taken_where_a_label_stands(tiny, ragged, layout, large):
    loss, seen = tiny(**pad(ragged, 0)).loss, []
    expected = torch.autograd.grad(loss, list(tiny.parameters()))
    spy = tiny.lm_head.register_forward_hook(lambda _, args, logits: seen.append(logits.shape))
    with packed_attention(tiny):
        found, grads = loss_and_grad(tiny, collate(ragged, layout, 0))
    spy.remove()
    assert seen == [(1, sum(len(row.ids) - row.n_prompt for row in ragged), tiny.config.vocab_size)]
    assert found == pytest.approx(loss.item(), rel=1e-6)
    for mine, theirs in zip(grads, expected, strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert not tiny.lm_head._forward_pre_hooks


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_cross_entropy_in_pieces(precision, large):
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)).to(precision).requires_grad_()
    labels = torch.arange(7)

    def slopes(loss):
        """First and second derivatives, the loss scaled as `loss_weight` scales it."""
        (plain,) = torch.autograd.grad(loss(logits, labels) * 0.5, logits)
        (first,) = torch.autograd.grad(loss(logits, labels) * 0.5, logits, create_graph=True)
        (second,) = torch.autograd.grad(first.float().pow(2).sum(), logits)
        return plain, first, second

    ours = slopes(loss_module._CrossEntropy.apply)
    theirs = slopes(lambda logits, labels: torch.nn.functional.cross_entropy(logits.float(), labels))
    for mine, expected in zip(ours, (theirs[0], theirs[0], theirs[2]), strict=True):
        assert_close(mine, expected)


def test_cross_entropy_in_pieces_under_functional_transforms(large):
    from torch.func import grad, vmap

    logits = torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7)
    theirs = vmap(grad(lambda one: torch.nn.functional.cross_entropy(one, labels)))(logits)
    assert_close(vmap(grad(lambda one: loss_module._CrossEntropy.apply(one, labels)))(logits), theirs)


@pytest.mark.parametrize("family", ["Gemma2", "Granite", "Cohere", "GPT2", "OPT", "GPTNeoX"])
def test_decoders_that_scale_or_cap_their_logits(family, tokenizer, ragged, large):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    scales = {"Gemma2": {"head_dim": 8, "final_logit_softcapping": 0.1}, "Granite": {"logits_scaling": 8.0}}
    options = {**sizes, **scales.get(family, {})}
    if family in ("GPT2", "OPT"):  # they name it otherwise
        del options["intermediate_size"]
        options |= {"ffn_dim": 48, "word_embed_proj_dim": 32} if family == "OPT" else {}
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), pad_token_id=0, **options)
    model = getattr(transformers, f"{family}ForCausalLM" if family != "GPT2" else "GPT2LMHeadModel")(config).eval()
    batch = pad(ragged, 0)
    theirs = model(**batch).loss
    expected = torch.autograd.grad(theirs, model.get_input_embeddings().weight)[0]
    ours = loss_of(model, batch)
    assert_close(ours, theirs)
    assert_close(torch.autograd.grad(ours, model.get_input_embeddings().weight)[0], expected, rtol=1e-4, atol=1e-6)


def test_packed_attention_builds_no_mask(tiny, ragged, monkeypatch):
    """[T, T] for a pack of T tokens would be built in vain; a padded batch in the same context keeps its mask."""
    import transformers.masking_utils

    made, sdpa_mask = [], transformers.masking_utils.sdpa_mask
    monkeypatch.setattr(transformers.masking_utils, "sdpa_mask", lambda **k: made.append(1) or sdpa_mask(**k))
    with packed_attention(tiny):
        packed = loss_of(tiny, collate(ragged, "varlen", 0))
        assert not made
        assert_close(loss_of(tiny, pad(ragged, 0)), packed)
        assert made


def test_packed_positions_without_boundaries_are_refused(tiny, ragged):
    batch = {k: v for k, v in collate(ragged, "varlen", 0).items() if not k.startswith("cu_")}
    with packed_attention(tiny), pytest.raises(ValueError, match="cu_seq_lens_q"):
        loss_of(tiny, batch)


def test_attention_is_put_back(tiny):
    before = tiny.config._attn_implementation
    with pytest.raises(RuntimeError), packed_attention(tiny):
        assert tiny.config._attn_implementation != before
        raise RuntimeError
    assert tiny.config._attn_implementation == before


def test_windows_shorter_than_a_sequence_are_not_packed(tiny):
    assert can_pack(tiny, 64)
    tiny.config.sliding_window = 32
    assert not can_pack(tiny, 64)
    assert can_pack(tiny, 32)


def test_classifiers_bring_their_own_loss():
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).eval()
    batch = {"input_ids": torch.arange(8).view(2, 4), "labels": torch.tensor([0, 1])}
    assert_close(loss_of(model, batch), model(**batch).loss)
