"""From an example to token ids: the tokenizer's chat template, or a named plain one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from inoculate.core.errors import InputError
from inoculate.core.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["chat", "plain", "alpaca"]
"""`chat`: the tokenizer's own. `plain`: turns and answer, a blank line between. `alpaca`: as in the Booster paper."""

_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)


class Encoded(NamedTuple):
    """Token ids of prompt and answer together; the first `n_prompt` carry no loss."""

    ids: list[int]
    n_prompt: int


def check_template(tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Refuse `chat` for a tokenizer that has no chat template.

    Raises:
        InputError: naming the tokenizer and the alternatives.
    """
    if template == "chat" and not tokenizer.chat_template:
        raise InputError(
            "this tokenizer has no chat template",
            file=tokenizer.name_or_path or None,
            field="template",
            found=template,
            expected="`plain` or `alpaca`, or a tokenizer with a chat template",
        )


def plain_prompt(example: Example, template: Template) -> str:
    """The text of the prompt, up to where the answer starts, under a template that is no tokenizer's."""
    if template == "alpaca":
        return _ALPACA.format(prompt="\n".join(text for _, text in example.turns))
    return "\n\n".join(text for _, text in example.turns) + "\n\n"


def render(tokenizer: PreTrainedTokenizerBase, example: Example, template: Template) -> tuple[str, str]:
    """The text of the prompt, up to where the answer starts, and of the answer with its end mark."""
    end = str(tokenizer.eos_token or "")
    if template != "chat":
        return plain_prompt(example, template), example.completion + end
    turns = [{"role": role, "content": text} for role, text in example.turns]
    prompt = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    answered = [*turns, {"role": "assistant", "content": example.completion}]
    whole = str(tokenizer.apply_chat_template(answered, tokenize=False))
    if not whole.startswith(prompt):  # templates that rewrite earlier turns: the answer follows the prompt as is
        return prompt, example.completion + end
    answer = whole[len(prompt) :]
    cut = answer.rfind(end) if end else -1
    return prompt, answer[: cut + len(end)] if cut >= 0 else answer + end


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], template: Template, max_length: int
) -> list[Encoded]:
    """Tokenize prompt and answer apart, so that training sees the very boundary that generation will.

    Rows longer than `max_length` tokens lose their end, as in the published code. Rows of which then no answer
    token is left are dropped.

    Raises:
        InputError: if no row is left.
    """
    check_template(tokenizer, template)
    if not examples:
        return []
    texts = [render(tokenizer, example, template) for example in examples]
    prompts = encode_prompts(tokenizer, [prompt for prompt, _ in texts], template)
    answers = tokenizer([answer for _, answer in texts], add_special_tokens=False)["input_ids"]
    rows = [
        Encoded((prompt + answer)[:max_length], len(prompt))
        for prompt, answer in zip(prompts, answers, strict=True)
        if len(prompt) < max_length and answer
    ]
    if not rows:
        raise InputError(
            "no row has an answer token left after truncation",
            field="max_length",
            found=max_length,
            expected=f"more than the shortest prompt, {min(map(len, prompts))} tokens",
        )
    return rows


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], template: Template) -> list[list[int]]:
    """Ids of rendered prompts. A chat template writes its own special tokens; plain text gets the tokenizer's BOS."""
    if not prompts:
        return []
    rows = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if template != "chat" and bos is not None:
        rows = [[bos, *row] for row in rows]
    return rows


def prompt_ids(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], template: Template) -> list[list[int]]:
    """Ids to generate an answer from."""
    check_template(tokenizer, template)
    return encode_prompts(tokenizer, [render(tokenizer, example, template)[0] for example in examples], template)
