"""Bodies of classifiers: MLPs over vectors, and encoders over texts, fresh or pretrained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from inoculate.core.errors import InputError
from inoculate.core.types import Value
from inoculate.models.checkpoint import ASSET, ENCODER_MEMBERS, check_weights, locate, packaged_model

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Pooling = Literal["mean", "cls"]
_NOTE = "body.json"
_WEIGHTS = "body.safetensors"


class Mlp(Value):
    """`num_layers` of ReLU over vectors; with a `feature_size` residual, under a tanh pooler as in BERT."""

    name: Literal["mlp"] = "mlp"
    hidden_size: PositiveInt = 48
    num_layers: PositiveInt = 4
    feature_size: PositiveInt | None = None


class TinyEncoder(Value):
    """A BERT of transformers' own class over a word-level tokenizer; 33,000 weights by default."""

    name: Literal["encoder"] = "encoder"
    hidden_size: PositiveInt = 32
    intermediate_size: PositiveInt = 64
    num_hidden_layers: PositiveInt = 2
    num_attention_heads: PositiveInt = 2
    max_length: PositiveInt = 32
    pooling: Pooling = "mean"

    @model_validator(mode="after")
    def _heads_divide(self) -> TinyEncoder:
        if self.hidden_size % self.num_attention_heads:
            heads = f"num_attention_heads, {self.num_attention_heads}"
            raise ValueError(f"hidden_size: {self.hidden_size} is not a multiple of {heads}")
        return self


class PretrainedEncoder(Value):
    """An encoder that exists: hub id, local folder or `asset:minilm`, whole or its first layers."""

    name: Literal["pretrained"] = "pretrained"
    name_or_path: str
    revision: str | None = None
    num_hidden_layers: PositiveInt | None = None
    """Of the pretrained ones, the first so many; null keeps all."""
    max_length: PositiveInt = 48
    """Tokens; the rest of a text is cut off."""
    pooling: Pooling = "mean"

    def check(self) -> None:
        """Refuse an address where no encoder is, and local weights that are missing, pickled or cut off.

        Raises:
            InputError: naming the address or the file.
        """
        if self.name_or_path.startswith(ASSET):
            packaged_model(self.name_or_path, tuple(ENCODER_MEMBERS))
            return
        place = locate(self.name_or_path)
        if place.path is not None:
            check_weights(place.path, allow_pickle=False)


BodyConfig = Annotated[Mlp | TinyEncoder | PretrainedEncoder, Field(discriminator="name")]


def build_body(config: Mlp | TinyEncoder, seed: int, *, input_size: int = 0, tokenizer: Any = None) -> Any:
    """A freshly initialized body; the same seed gives the same weights.

    Args:
        input_size: of vectors.
        tokenizer: of texts.
    """
    import torch

    from inoculate.models.classifier import EncoderBody, MlpBody

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if isinstance(config, Mlp):
            return MlpBody(input_size, config.hidden_size, config.num_layers, config.feature_size)
        return EncoderBody(_bert(config, tokenizer), config.pooling)


def reinitialized(body: Any, seed: int) -> Any:
    """A body of the same shape with random weights: what an attacker has who starts without the model.

    With the seed of an MLP's own pretraining, these are the weights that it set out from.
    """
    import torch
    from transformers import AutoModel

    from inoculate.models.classifier import EncoderBody, MlpBody

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if isinstance(body, EncoderBody):
            fresh: Any = AutoModel
            encoder = fresh.from_config(body.encoder.config, attn_implementation="eager")
            encoder.pooler = None
            return EncoderBody(encoder, body.pooling)
        return MlpBody(**body.shape())


def load_encoder(config: PretrainedEncoder) -> tuple[Any, Any]:
    """The body of an encoder that exists, and its tokenizer.

    Raises:
        InputError: if there is none at the address, or it has fewer layers.
    """
    from inoculate.models.classifier import EncoderBody
    from inoculate.models.load import load_backbone, load_tokenizer

    encoder: Any = load_backbone(config.name_or_path, revision=config.revision)
    tokenizer = load_tokenizer(config.name_or_path, config.revision)
    longest = getattr(encoder.config, "max_position_embeddings", None)
    if longest is not None and config.max_length > longest:
        raise InputError(
            "longer than its positions",
            file=config.name_or_path,
            field="max_length",
            found=config.max_length,
            expected=f"at most {longest}",
        )
    wanted, found = config.num_hidden_layers, encoder.config.num_hidden_layers
    if wanted is not None:
        layers = getattr(getattr(encoder, "encoder", None), "layer", None)
        if layers is None or wanted > found:
            known = f"at most {found}" if layers is not None else "null: its layers are not where BERT's are"
            raise InputError("no such layers", file=config.name_or_path, field="num_hidden_layers", expected=known)
        encoder.encoder.layer = layers[:wanted]
        encoder.config.num_hidden_layers = wanted
    return EncoderBody(_without_dropout(encoder), config.pooling), tokenizer


def _without_dropout(encoder: Any) -> Any:
    """Runs are compared step by step. The configuration keeps its own rates, so this is done at every load."""
    import torch

    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return encoder


def save_body(out: Path, body: Any, tokenizer: Any = None) -> None:
    """Write a body: an encoder as a folder that transformers loads, an MLP as safetensors and its shape."""
    from safetensors.torch import save_file
    from transformers.utils import logging

    from inoculate.models.classifier import EncoderBody

    if isinstance(body, EncoderBody):
        logging.disable_progress_bar()
        body.encoder.save_pretrained(out)
        if tokenizer is not None:
            tokenizer.save_pretrained(out)
        note: dict[str, Any] = {"name": "encoder", "pooling": body.pooling}
    else:
        save_file({name: t.contiguous() for name, t in body.state_dict().items()}, out / _WEIGHTS)
        note = {"name": "mlp", "shape": body.shape()}
    (out / _NOTE).write_text(json.dumps(note, indent=1) + "\n")


def load_body(folder: Path) -> tuple[Any, Any]:
    """What `save_body` wrote, and the tokenizer of an encoder."""
    from safetensors.torch import load_file

    from inoculate.models.classifier import EncoderBody, MlpBody
    from inoculate.models.load import load_backbone, load_tokenizer

    note = json.loads((folder / _NOTE).read_text())
    if note["name"] == "encoder":
        return EncoderBody(_without_dropout(load_backbone(str(folder))), note["pooling"]), load_tokenizer(str(folder))
    body = MlpBody(**note["shape"])
    body.load_state_dict(load_file(folder / _WEIGHTS))
    return body, None


def as_tensors(inputs: Sequence[str] | np.ndarray, tokenizer: Any = None, max_length: int | None = None) -> Any:
    """What a body is given, all rows at once: `x` [N, D]; of texts `input_ids` and `attention_mask` [N, T].

    Texts are padded to the longest of them, and cut after `max_length` tokens.
    """
    import numpy as np
    import torch

    if isinstance(inputs, np.ndarray):
        return {"x": torch.from_numpy(inputs)}
    options = {"truncation": max_length is not None, "max_length": max_length, "return_tensors": "pt"}
    found = tokenizer(list(inputs), padding=True, **options)
    tensors: dict[str, Tensor] = {name: found[name] for name in ("input_ids", "attention_mask")}
    return tensors


def _bert(config: TinyEncoder, tokenizer: Any) -> Any:
    from transformers import BertConfig, BertModel

    shape = config.model_dump(exclude={"name", "max_length", "pooling"})
    bert = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=config.max_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    bert._attn_implementation = "eager"
    return BertModel(bert, add_pooling_layer=False)
