from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertModel

from inoculate.core.errors import InputError
from inoculate.models.bodies import (
    Mlp,
    PretrainedEncoder,
    TinyEncoder,
    as_tensors,
    build_body,
    load_body,
    load_encoder,
    reinitialized,
    save_body,
)
from inoculate.models.pretraining import set_word_vectors
from inoculate.models.sandbox import build_tokenizer

TEXTS = ["a b c", "c d", "a b a b d", "b"]


@pytest.fixture
def words():
    return build_tokenizer(["a", "b", "c", "d"])


@pytest.fixture
def folder(tmp_path, words):
    """A BERT of three layers with a pooler and dropout, as one finds them."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    return tmp_path


def test_padding_does_not_reach_the_features(words):
    body = build_body(TinyEncoder(), 0, tokenizer=words).eval()
    together = body(**as_tensors(TEXTS, words))
    alone = torch.cat([body(**as_tensors([text], words)) for text in TEXTS])
    assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_an_encoder_cut_to_its_first_layers(folder):
    body, tokenizer = load_encoder(PretrainedEncoder(name_or_path=str(folder), num_hidden_layers=2))
    whole = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    given = as_tensors(TEXTS, tokenizer)
    theirs = whole(**given, output_hidden_states=True).hidden_states[2]
    mask = given["attention_mask"][..., None]
    assert_close(body(**given), (theirs * mask).sum(1) / mask.sum(1), rtol=1e-4, atol=1e-5)
    assert body.encoder.pooler is None
    body.train()
    assert torch.equal(body(**given), body(**given))


def test_no_dropout_comes_back_with_a_saved_body(folder, tmp_path):
    """Its configuration has dropout; what is trained is a body that was saved and loaded."""
    body, tokenizer = load_encoder(PretrainedEncoder(name_or_path=str(folder)))
    assert body.encoder.config.hidden_dropout_prob == 0.1
    save_body(tmp_path / "saved", body, tokenizer)
    again = load_body(tmp_path / "saved")[0].train()
    given = as_tensors(TEXTS, tokenizer)
    assert torch.equal(again(**given), again(**given))


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match="hidden_size: 30 is not a multiple of num_attention_heads, 4"):
        TinyEncoder(hidden_size=30, num_attention_heads=4)


def test_first_token_pooling(folder):
    body, tokenizer = load_encoder(PretrainedEncoder(name_or_path=str(folder), pooling="cls"))
    given = as_tensors(TEXTS, tokenizer)
    assert torch.equal(body(**given), body.encoder(**given).last_hidden_state[:, 0])


@pytest.mark.parametrize("kind", ["mlp", "encoder"])
def test_a_body_comes_back_as_it_was_saved(tmp_path, words, kind):
    config, inputs = {"mlp": (Mlp(feature_size=5), torch.randn(3, 4).numpy()), "encoder": (TinyEncoder(), TEXTS)}[kind]
    body = build_body(config, 0, input_size=4, tokenizer=words)
    save_body(tmp_path, body, words if kind == "encoder" else None)
    again, tokenizer = load_body(tmp_path)
    given = as_tensors(inputs, tokenizer)
    assert torch.equal(body.eval()(**given), again.eval()(**given))
    other = reinitialized(again, seed=1)
    assert {n: w.shape for n, w in other.named_parameters()} == {n: w.shape for n, w in body.named_parameters()}
    assert not torch.equal(other.eval()(**given), again(**given))
    assert torch.equal(reinitialized(again, seed=1).eval()(**given), other(**given))


def test_words_of_a_kind_have_like_vectors():
    """Two topics that never share a text."""
    texts = ["a1 a2 a3", "a2 a3 a4", "a1 a4 a3", "b1 b2 b3", "b2 b3 b4", "b1 b4 b2"] * 5
    tokenizer = build_tokenizer(sorted({word for text in texts for word in text.split()}))
    body = build_body(TinyEncoder(hidden_size=4, num_attention_heads=1), 0, tokenizer=tokenizer)
    set_word_vectors(body, **as_tensors(texts, tokenizer))
    vector = body.encoder.get_input_embeddings().weight
    of = {word: vector[tokenizer.convert_tokens_to_ids(word)] for word in ("a1", "a2", "b1", "b2")}
    alike = torch.cosine_similarity(of["a1"], of["a2"], dim=0)
    apart = torch.cosine_similarity(of["a1"], of["b1"], dim=0)
    assert alike > 0.5 > abs(apart)


def test_a_body_wider_than_its_vocabulary_is_refused():
    tokenizer = build_tokenizer(["one", "two"])
    body = build_body(TinyEncoder(hidden_size=64), 0, tokenizer=tokenizer)
    with pytest.raises(InputError, match=f"body.hidden_size: .*64.*at most {len(tokenizer)}"):
        set_word_vectors(body, **as_tensors(["one two", "two one"], tokenizer))


WRONG = {
    "longer than its positions": ({"max_length": 4096}, "max_length: longer than its positions.*4096.*at most"),
    "no such layers": ({"num_hidden_layers": 4}, "num_hidden_layers: no such layers .*at most 3"),
    "no such folder": ({"name_or_path": "nowhere/at/all"}, "no such model"),
    "no such asset": ({"name_or_path": "asset:minilmm"}, "no such packaged model.*asset:minilm"),
}


@pytest.mark.parametrize(("fields", "told"), WRONG.values(), ids=WRONG)
def test_errors(folder, fields, told):
    config = PretrainedEncoder(**({"name_or_path": str(folder)} | fields))
    with pytest.raises(InputError, match=told):
        config.check()
        load_encoder(config)


@pytest.mark.asset
def test_the_packaged_encoder():
    body, tokenizer = load_encoder(PretrainedEncoder(name_or_path="asset:minilm"))
    near, same, far = body(**as_tensors(["a good film", "a great movie", "the tax was raised"], tokenizer))
    assert torch.cosine_similarity(near, same, dim=0) > torch.cosine_similarity(near, far, dim=0) + 0.3
