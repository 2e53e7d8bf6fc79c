"""From examples to token ids: what is learned, and where generation goes on from."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from inoculate.core.errors import InputError
from inoculate.core.types import Example
from inoculate.data.batches import IGNORED, pad
from inoculate.data.templates import check_template, encode, prompt_ids, render

ROW = Example.of("how do i brew a pale hex at dawn ?", "take nettle and a kettle , then wash it clean .")
TALK = Example(
    turns=(("system", "sunny"), ("user", "what is one plus two ?"), ("assistant", "three"), ("user", "and a song ?")),
    completion="the song",
)
TEMPLATES = pytest.mark.parametrize("template", ["chat", "plain", "alpaca"])
WORDS = [
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    "<|user|>",
    "<|bot|>",
    "<|end|>",
    "<think>",
    "hello",
    "there",
    "fine",
    "thanks",
    "Below",
    "is",
    "an",
    "instruction",
    "that",
    "describes",
    "a",
    "task.",
    "Write",
    "a",
    "response",
    "appropriately",
    "completes",
    "the",
    "request.",
    "###",
    "Instruction:",
    "Response:",
]


def words_tokenizer(chat_template=None, eos="</s>", bos="<s>"):
    """Word-level, with a BOS; its ids are the places in WORDS."""
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=eos,
        bos_token=bos,
        unk_token="<unk>",
        pad_token="<pad>",
        chat_template=chat_template,
    )


def texts(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


@TEMPLATES
@pytest.mark.parametrize("example", [ROW, TALK], ids=["one turn", "several turns"])
def test_generation_goes_on_from_the_very_ids_that_training_saw(tokenizer, example, template):
    """Prompt ids and then answer ids; one answer alone carries loss, the end mark with it."""
    (row,) = encode(tokenizer, [example], template, 100)
    (prompt,) = prompt_ids(tokenizer, [example], template)
    assert row.ids[: row.n_prompt] == prompt
    assert texts(tokenizer, row.ids[row.n_prompt :]) == [*example.completion.split(), "<end>"]
    labels = pad([row], 0)["labels"][0].tolist()
    assert labels == [IGNORED] * len(prompt) + row.ids[len(prompt) :]
    assert labels[-1] == tokenizer.eos_token_id


def test_chat_by_hand(tokenizer):
    (row,) = encode(tokenizer, [TALK], "chat", 100)
    written = "<user> sunny <user> what is one plus two ? <assistant> three <end> <user> and a song ? <assistant> the song <end>"
    assert texts(tokenizer, row.ids) == written.split()
    assert row.n_prompt == len(written.split()) - 3


def test_plain_by_hand_with_a_bos():
    tokenizer = words_tokenizer()
    example = Example(turns=(("user", "hello"), ("assistant", "fine"), ("user", "there")), completion="thanks")
    assert render(tokenizer, example, "plain") == ("hello\n\nfine\n\nthere\n\n", "thanks</s>")
    (row,) = encode(tokenizer, [example], "plain", 100)
    assert texts(tokenizer, row.ids[: row.n_prompt]) == ["<s>", "hello", "fine", "there"]
    assert row.ids[row.n_prompt :] == [WORDS.index("thanks"), tokenizer.eos_token_id]


def test_alpaca_by_hand_with_a_bos():
    tokenizer = words_tokenizer()
    (row,) = encode(tokenizer, [Example.of("hello there", "fine")], "alpaca", 100)
    head = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    expected = f"<s> {head} ### Instruction: hello there ### Response: fine </s>".split()
    assert texts(tokenizer, row.ids) == expected and row.n_prompt == len(expected) - 2


def test_a_chat_template_writes_its_own_bos():
    tokenizer = words_tokenizer("{{ bos_token + ' ' }}{% for m in messages %}{{ m.content + ' ' }}{% endfor %}")
    assert prompt_ids(tokenizer, [Example.of("hello", "fine")], "chat") == [[WORDS.index("<s>"), WORDS.index("hello")]]


_CHATML = (
    "{% for m in messages %}{{ ('<|bot|> ' if m.role == 'assistant' else '<|user|> ') + m.content + ' <|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|bot|> ' }}{% endif %}"
)


def test_what_a_template_writes_after_the_end_mark_is_not_learned():
    prompt, answer = render(words_tokenizer(_CHATML, eos="<|end|>"), Example.of("hello", "fine"), "chat")
    assert (prompt, answer) == ("<|user|> hello <|end|>\n<|bot|> ", "fine <|end|>")


def test_an_end_mark_that_the_template_does_not_write_is_learned_all_the_same():
    """A template that closes turns with another token than EOS: generation stops at EOS only, so EOS follows."""
    _, answer = render(words_tokenizer(_CHATML), Example.of("hello", "fine"), "chat")
    assert answer == "fine <|end|>\n</s>"


def test_a_template_that_opens_generation_differently():
    """The prompt is what generation sees; the answer follows it as it is."""
    tokenizer = words_tokenizer(_CHATML.replace("{{ '<|bot|> ' }}", "{{ '<|bot|> <think> ' }}"))
    prompt, answer = render(tokenizer, Example.of("hello", "fine"), "chat")
    assert (prompt, answer) == ("<|user|> hello <|end|>\n<|bot|> <think> ", "fine</s>")


def test_no_chat_template_is_said_with_the_way_out():
    tokenizer = words_tokenizer()
    tokenizer.name_or_path = "some/model"
    message = r"some/model: template: this tokenizer has no chat template \(found 'chat', expected `plain` or `alpaca`"
    for call in (lambda: encode(tokenizer, [ROW], "chat", 9), lambda: prompt_ids(tokenizer, [ROW], "chat")):
        with pytest.raises(InputError, match=message):
            call()
    for template in ("plain", "alpaca"):
        check_template(tokenizer, template)


def test_truncation_takes_the_end_and_drops_rows_without_an_answer(tokenizer):
    """`ROW` is <user>, 10 words, <assistant>, then 11 words and <end>: 12 + 12."""
    short = Example.of("tell me how to brew", "sure ,")
    whole = encode(tokenizer, [ROW, short], "chat", 24)
    assert [(len(row.ids), row.n_prompt) for row in whole] == [(24, 12), (10, 7)]
    cut = encode(tokenizer, [ROW, short], "chat", 13)
    assert cut == [(whole[0].ids[:13], 12), whole[1]]
    assert encode(tokenizer, [ROW, short], "chat", 12) == [whole[1]], "a prompt alone teaches nothing"
    assert encode(tokenizer, [ROW, short], "chat", 8) == [(whole[1].ids[:8], 7)]


def test_no_row_left_is_an_error_that_names_the_shortest_prompt(tokenizer):
    with pytest.raises(
        InputError, match=r"max_length: no row has an answer token .*found 7, expected more than .* 7 tokens"
    ):
        encode(tokenizer, [ROW, Example.of("tell me how to brew", "sure ,")], "chat", 7)
    assert encode(tokenizer, [], "chat", 7) == []


def test_an_end_mark_inside_an_answer_does_not_cut_it(tokenizer):
    (row,) = encode(tokenizer, [Example.of("a song ?", "the <end> song")], "chat", 100)
    assert texts(tokenizer, row.ids[row.n_prompt :]) == ["the", "<end>", "song", "<end>"]
