"""Causal language models and their tokenizers by address.

An address is a hub id (`org/name`), a local folder, the folder of a LoRA adapter, a `.gguf` file, or `asset:smollm2`,
a real small model inside a published package. Weights are read from safetensors or GGUF; no code of a model is run.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock

from inoculate.core.assets import asset_named, cache_folder, read_member
from inoculate.core.errors import InputError
from inoculate.core.hashing import file_sha256
from inoculate.models.checkpoint import (
    ASSET,
    ENCODER_MEMBERS,
    GGUF_MEMBERS,
    Located,
    base_of,
    check_adapter,
    check_weights,
    explained,
    first_line,
    locate,
    named,
    packaged_model,
)
from inoculate.models.shape import model_shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DTYPES", "load_model", "load_tokenizer", "model_shape"]

_SUMS = "sha256.json"
_VERIFIED: set[Path] = set()
"""Converted models that this process has hashed."""
DTYPES = ("float32", "bfloat16", "float16", "auto")


def load_model(
    address: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device_map: str | dict[str, Any] | None = None,
    allow_pickle: bool = False,
    is_trainable: bool = False,
) -> PreTrainedModel:
    """A causal language model in eval mode. The folder of an adapter gives its base with the adapter mounted: then a
    `PeftModel`, which forwards what it does not have to the model inside.

    Args:
        revision: commit of a hub id.
        dtype: one of `DTYPES`; weights of a GGUF file are de-quantized to it.
        device_map: as in transformers.
        allow_pickle: read weights that are there as pickles only (through torch's weights-only loader).
        is_trainable: whether a mounted adapter takes gradients; of no effect on other models.

    Raises:
        InputError: if there is no model at the address, or its weights are missing, pickled, damaged or incomplete.
    """
    if dtype not in DTYPES:
        raise InputError("no such dtype", field="dtype", found=dtype, expected=", ".join(DTYPES), known=DTYPES)
    place = _locate(address)
    if place.kind == "adapter" and place.path is not None:
        check_adapter(place.path, allow_pickle)
        base, base_revision = base_of(place.path)
        try:
            model = load_model(
                base, revision=base_revision, dtype=dtype, device_map=device_map, allow_pickle=allow_pickle
            )
        except InputError as error:
            raise error.located(file=place.path, field="base_model_name_or_path") from None
        return _mount(model, place.path, is_trainable)
    if place.kind == "folder" and place.path is not None:
        check_weights(place.path, allow_pickle)
    options: dict[str, Any] = {"dtype": dtype, "device_map": device_map}
    if place.kind == "gguf":
        options |= _dequantized()
    else:
        options["use_safetensors"] = None if allow_pickle else True
    return _from_pretrained(place, revision, options)


def load_backbone(address: str, *, revision: str | None = None) -> PreTrainedModel:
    """An encoder without head and pooler, in float32, with plain attention, which can be differentiated twice.

    Args:
        address: hub id, local folder or `asset:minilm`.

    Raises:
        InputError: if there is none, or its weights are missing, pickled, damaged or incomplete.
    """
    from transformers import AutoModel

    place = _locate(address)
    if place.kind == "folder" and place.path is not None:
        check_weights(place.path, allow_pickle=False)
    name, where = named(place, revision)
    options = {**where, "trust_remote_code": False, "use_safetensors": True, "dtype": "float32"}
    with explained(place, "model"), _no_progress_bars(), _no_load_report():
        encoder = AutoModel.from_pretrained(name, attn_implementation="eager", **options)
    if hasattr(encoder, "pooler"):
        encoder.pooler = None
    return encoder


def load_tokenizer(address: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; for an adapter its own, else its base's.

    Raises:
        InputError: if there is none at the address.
    """
    from transformers import AutoTokenizer

    place = _locate(address)
    if place.kind == "adapter" and place.path is not None and not (place.path / "tokenizer_config.json").is_file():
        return load_tokenizer(*base_of(place.path))
    name, options = named(place, revision)
    with explained(place, "tokenizer"):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)


def _locate(address: str) -> Located:
    if not address.startswith(ASSET):
        return locate(address)
    return Located("folder", address, _converted(packaged_model(address, (*GGUF_MEMBERS, *ENCODER_MEMBERS))))


def _converted(name: str) -> Path:
    """The folder of a packaged model: unpacked, or made from its GGUF file as float32 safetensors, once.

    Its files are hashed once per process, and it is made again if they are not what they were.
    """
    folder = cache_folder() / "models"
    done = folder / f"{name}-{asset_named(name).sha256[:12]}"
    if done in _VERIFIED:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{done.name}.lock"):
        if not _is_as_made(done):
            with tempfile.TemporaryDirectory(dir=folder, prefix=".convert-") as work:
                partial = Path(work) / "partial"
                _unpack(name, partial) if name in ENCODER_MEMBERS else _dequantize(name, Path(work), partial)
                (partial / _SUMS).write_text(json.dumps(_sums(partial), indent=1), encoding="utf-8")
                shutil.rmtree(done, ignore_errors=True)
                partial.rename(done)
    _VERIFIED.add(done)
    return done


def _sums(folder: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in sorted(folder.iterdir()) if file.name != _SUMS}


def _is_as_made(folder: Path) -> bool:
    try:
        return json.loads((folder / _SUMS).read_text(encoding="utf-8")) == _sums(folder)
    except (OSError, ValueError):
        return False


def _unpack(name: str, folder: Path) -> None:
    folder.mkdir()
    for member in ENCODER_MEMBERS[name]:
        (folder / Path(member).name).write_bytes(read_member(name, member))


def _dequantize(name: str, work: Path, folder: Path) -> None:
    gguf = work / "model.gguf"
    gguf.write_bytes(read_member(name, GGUF_MEMBERS[name]))
    model, tokenizer = load_model(str(gguf)), load_tokenizer(str(gguf))
    with _no_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _dequantized() -> dict[str, Any]:
    # Newer releases keep the weights in blocks, which cannot be trained or saved; older ones always unpack them.
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _from_pretrained(place: Located, revision: str | None, options: dict[str, Any]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    name, where = named(place, revision)
    options = {**options, **where, "trust_remote_code": False, "output_loading_info": True}
    options["ignore_mismatched_sizes"] = True  # reported below, with the address
    with explained(place, "model"), _no_progress_bars(place.kind == "gguf"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, **options)
    model, info = loaded
    for what in ("missing_keys", "mismatched_keys"):
        if info[what]:
            some = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info[what])
            raise InputError(
                "the weights do not fill the model that its configuration describes",
                file=place.address,
                field=what.replace("_keys", " weights"),
                found=", ".join(some[:3]) + (f" and {len(some) - 3} more" if len(some) > 3 else ""),
            )
    return model


def _mount(model: PreTrainedModel, folder: Path, is_trainable: bool) -> PreTrainedModel:
    import torch
    from peft import PeftModel

    try:
        mounted = PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)
    except torch.OutOfMemoryError:  # a RuntimeError too, but no fault of the input
        raise
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"the adapter does not fit its base model: {first_line(error)}", file=folder) from None
    return cast("PreTrainedModel", cast("object", mounted.eval()))


@contextmanager
def _no_load_report() -> Iterator[None]:
    """A pooler that a folder lacks is made up and reported, and then not used."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _no_progress_bars(gguf: bool = False) -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    with ExitStack() as stack:
        if shown:
            stack.callback(logging.enable_progress_bar)
        if gguf:  # its bar does not ask transformers' switch
            stack.enter_context(redirect_stderr(io.StringIO()))
        yield
