"""What a server imports once for all workers that are forked from it: what most stages need."""

from __future__ import annotations

from inoculate.experiments.processes import hush_bitsandbytes

hush_bitsandbytes()

import peft  # noqa: E402, F401
import torch  # noqa: E402, F401
import transformers.models.llama  # noqa: E402, F401

import inoculate.experiments.recipe  # noqa: E402, F401
