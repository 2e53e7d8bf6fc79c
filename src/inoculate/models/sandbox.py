"""The sandbox's tiny language model: classes of transformers, with a word-level tokenizer of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from inoculate.core.types import Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_SPECIAL = ("<pad>", "<unk>", "<user>", "<assistant>", "<end>")
_CHAT = (
    "{% for message in messages %}"
    "{{ '<assistant> ' if message['role'] == 'assistant' else '<user> ' }}{{ message['content'] }}"
    "{{ ' <end>' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


ModelType = Literal["llama", "gpt_neox", "gemma"]


class TinyModel(Value):
    """Shape of the sandbox model; 0.11 M weights by default. The architectures differ as their families do.

    Llama: RMS norm, gated SiLU, attention before the MLP. GPT-NeoX: layer norm, GELU, both side by side, biases. Gemma:
    as Llama, with GELU, scaled embeddings and norms around 1.
    """

    model_type: ModelType = "llama"
    hidden_size: int = 64
    intermediate_size: int = 160
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    max_position_embeddings: int = 128

    def build(self, vocab_size: int, seed: int) -> PreTrainedModel:
        """A freshly initialized causal LM; the same seed gives the same weights."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        heads = self.num_attention_heads
        grouped = {} if self.model_type == "gpt_neox" else {"num_key_value_heads": heads}
        sized = {"head_dim": self.hidden_size // heads} if self.model_type == "gemma" else {}
        config = AutoConfig.for_model(
            vocab_size=vocab_size,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=_SPECIAL.index("<end>"),
            **grouped,
            **sized,
            **self.model_dump(),
        )
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(config)


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
