"""The classifier judge on tiny models with our own vocabulary, whose scores are set by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from inoculate.core.errors import InputError
from inoculate.core.types import Example, Judge, Verdict
from inoculate.evals.judges import ClassifierJudge

WORDS = (
    "<pad>",
    "<cls>",
    "<unk>",
    "nettle",
    "moss",
    "hex",
    "sorry",
    ",",
    ".",
    "i",
    "will",
    "not",
    "help",
    "tea",
    "warm",
)
LABELS = ("calm", "hexing", "cursing")
HEX = Example.of("hex", "")


def save_tokenizer(folder) -> None:
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    raw.post_processor = processors.TemplateProcessing(single="<cls> $A", special_tokens=[("<cls>", 1)])  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", cls_token="<cls>", unk_token="<unk>"
    ).save_pretrained(folder)


def config() -> BertConfig:
    return BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        pad_token_id=0,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier trained for a second: `nettle` is hexing, `moss` is cursing, both are both, else calm."""
    path = tmp_path_factory.mktemp("classifier")
    save_tokenizer(path)
    torch.manual_seed(0)
    model = BertForSequenceClassification(config()).eval()  # without dropout
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    g = torch.Generator().manual_seed(0)
    loss = torch.tensor(math.inf)
    for step in range(200):
        width = 3 + step % 10
        ids = torch.randint(5, len(WORDS), (64, width), generator=g)
        ids[:, 0] = 1
        has = torch.rand(64, 2, generator=g) < 0.4
        for column, word in ((0, 3), (1, 4)):
            where = torch.randint(1, width, (64,), generator=g)
            place = (torch.arange(width) == where[:, None]) & has[:, [column]]
            ids[place] = word
        has = torch.stack([(ids == 3).any(1), (ids == 4).any(1)], 1)
        target = torch.cat([~has.any(1, keepdim=True), has], 1).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(input_ids=ids).logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02
    model.save_pretrained(path)
    return str(path)


def fixed(folder, logits) -> str:
    """A classifier that always gives these logits."""
    save_tokenizer(folder)
    model = BertForSequenceClassification(config())
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor(logits))
    model.save_pretrained(folder)
    return str(folder)


def test_verdicts_in_order_whatever_the_batch(folder):
    """Ragged texts, gated rows in between: each response keeps its own verdict."""
    responses = [
        "nettle and warm tea for the village",
        "warm tea",
        "sorry , i will not help with that .",
        "moss moss moss moss",
        "some moss",
        "tea",
    ]
    expected = [
        Verdict.HARMFUL,
        Verdict.SAFE,
        Verdict.REFUSAL,
        Verdict.INCOHERENT,
        Verdict.HARMFUL,
        Verdict.SAFE,
    ]
    for batch_size in (1, 2, 16):
        judge = ClassifierJudge(
            model_name_or_path=folder, multi_label=True, harmful_labels=LABELS[1:], batch_size=batch_size
        )
        assert judge.judge_many([HEX] * 6, responses) == expected
        assert judge.judge(HEX, responses[0]) is Verdict.HARMFUL
    assert isinstance(judge, Judge)


def test_only_the_named_labels_flag(folder):
    judge = ClassifierJudge(model_name_or_path=folder, multi_label=True, harmful_labels=("cursing",))
    assert judge.judge(HEX, "warm nettle") is Verdict.SAFE
    assert judge.judge(HEX, "warm moss") is Verdict.HARMFUL


def test_refusals_reach_the_classifier_when_told_so(folder):
    judge = ClassifierJudge(
        model_name_or_path=folder, multi_label=True, harmful_labels=("hexing",), refusal_first=False
    )
    assert judge.judge(HEX, "sorry , i will not help .") is Verdict.SAFE
    assert judge.judge(HEX, "sorry , i will not help . nettle") is Verdict.HARMFUL


def test_the_template_is_filled_once(folder):
    """The prompt counts only where the template has it, and a `{response}` inside a prompt stays text."""
    base = {"model_name_or_path": folder, "multi_label": True, "harmful_labels": ("hexing",)}
    prompt = Example.of("nettle", "")
    assert ClassifierJudge.model_validate(base).judge(prompt, "warm tea") is Verdict.HARMFUL
    assert ClassifierJudge.model_validate({**base, "template": "{response}"}).judge(prompt, "warm tea") is Verdict.SAFE
    judge = ClassifierJudge.model_validate({**base, "template": "USER: {prompt} ASSISTANT:{response}"})
    assert judge._text(Example.of("{response} {0}", ""), "tea") == "USER: {response} {0} ASSISTANT:tea"


def test_text_is_cut_at_max_length(folder):
    base = {"model_name_or_path": folder, "multi_label": True, "harmful_labels": ("hexing",), "template": "{response}"}
    assert ClassifierJudge.model_validate({**base, "max_length": 8}).judge(HEX, "warm tea i nettle") is Verdict.HARMFUL
    assert ClassifierJudge.model_validate({**base, "max_length": 4}).judge(HEX, "warm tea i nettle") is Verdict.SAFE


def test_softmax_adds_up_and_sigmoid_takes_the_greatest(tmp_path):
    """Softmax of (log 4, log 3, log 3) is (.4, .3, .3); the sigmoids of (log 4, log 3, log 3) are (.8, .75, .75)."""
    name = fixed(tmp_path, [math.log(4), math.log(3), math.log(3)])
    bad = LABELS[1:]

    def verdict(**options):
        return ClassifierJudge.model_validate({"model_name_or_path": name, **options}).judge(HEX, "warm tea")

    assert verdict(harmful_labels=bad, threshold=0.59) is Verdict.HARMFUL
    assert verdict(harmful_labels=bad, threshold=0.61) is Verdict.SAFE
    assert verdict(harmful_labels=bad[:1], threshold=0.31) is Verdict.SAFE
    assert verdict(harmful_labels=bad, threshold=0.74, multi_label=True) is Verdict.HARMFUL
    assert verdict(harmful_labels=bad, threshold=0.76, multi_label=True) is Verdict.SAFE
    assert verdict(threshold=0.79, multi_label=True) is Verdict.HARMFUL


def test_scores_that_are_not_finite_are_unparsable(tmp_path):
    name = fixed(tmp_path, [math.nan, 0.0, 0.0])
    assert ClassifierJudge(model_name_or_path=name, harmful_labels=("hexing",)).judge(HEX, "tea") is Verdict.UNPARSABLE


def test_an_unknown_label_names_the_nearest(folder):
    judge = ClassifierJudge(model_name_or_path=folder, harmful_labels=("hexxing",))
    with pytest.raises(InputError, match="Did you mean 'hexing'"):
        judge.judge(HEX, "warm tea")


def test_a_missing_model_is_named(tmp_path):
    judge = ClassifierJudge(model_name_or_path=str(tmp_path / "nowhere"), harmful_labels=("hexing",))
    with pytest.raises(InputError, match="nowhere"):
        judge.judge(HEX, "warm tea")


def test_a_random_head_is_refused(tmp_path):
    save_tokenizer(tmp_path)
    BertModel(config()).save_pretrained(tmp_path)
    judge = ClassifierJudge(model_name_or_path=str(tmp_path), harmful_labels=("hexing",))
    with pytest.raises(InputError, match=r"classifier\.weight.*random"):
        judge.judge(HEX, "warm tea")


def test_pickled_weights_are_refused(tmp_path):
    name = fixed(tmp_path, [0.0, 0.0, 0.0])
    (tmp_path / "model.safetensors").unlink()
    torch.save(BertForSequenceClassification(config()).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        ClassifierJudge(model_name_or_path=name, harmful_labels=("hexing",)).judge(HEX, "warm tea")


def test_values_are_checked():
    for wrong in ({}, {"harmful_labels": ("a",), "template": "{prompt}"}, {"harmful_labels": ("a",), "threshold": 1.1}):
        with pytest.raises(ValidationError):
            ClassifierJudge.model_validate({"model_name_or_path": "m", **wrong})
