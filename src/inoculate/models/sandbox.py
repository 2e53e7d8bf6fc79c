"""The sandbox's tiny language model: transformers' own Llama class, with a word-level tokenizer of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inoculate.core.types import Value

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_SPECIAL = ("<pad>", "<unk>", "<user>", "<assistant>", "<end>")
_CHAT = (
    "{% for message in messages %}"
    "{{ '<assistant> ' if message['role'] == 'assistant' else '<user> ' }}{{ message['content'] }}"
    "{{ ' <end>' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


class TinyLlama(Value):
    """Shape of the sandbox model; 0.11 M weights by default."""

    hidden_size: int = 64
    intermediate_size: int = 160
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    max_position_embeddings: int = 128

    def build(self, vocab_size: int, seed: int) -> LlamaForCausalLM:
        """A freshly initialized model; the same seed gives the same weights."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=vocab_size,
            num_key_value_heads=self.num_attention_heads,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=_SPECIAL.index("<end>"),
            **self.model_dump(),
        )
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(config)


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A word-level fast tokenizer with a chat template, over `words` and five special tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=_CHAT,
        clean_up_tokenization_spaces=False,
    )
