"""A model that somebody serves: its answers can be measured, its weights cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveInt

from inoculate.core.errors import StageError
from inoculate.core.types import Example
from inoculate.data.templates import Template, plain_prompt
from inoculate.evals.chat import Endpoint

UNMEASURED = ("harmful_loss_test",)
"""What is measured on weights, and therefore not here."""


class Served(Endpoint):
    """A model behind an OpenAI-compatible endpoint, as vLLM serves one.

    Under the template `chat` the turns go to `/chat/completions`, where the server's own chat template applies; under
    the others the rendered text goes to `/completions`.
    """

    name: Literal["served"] = "served"
    max_concurrency: PositiveInt = 32
    """Requests at a time: a server makes batches of them."""

    def check(self) -> None:
        """The address is checked as the value is made; nothing is asked before the measurement."""

    def generate(self, examples: Sequence[Example], template: Template, max_new_tokens: int) -> list[str]:
        """The answer to each example's turns, stripped; greedy unless `temperature` says otherwise.

        Raises:
            InputError: as `Endpoint.ask`.
            StageError: as `Endpoint.ask`; or if a prompt got no text, which is no answer of the model.
        """
        chat = template == "chat"
        bodies = [
            {"messages": [{"role": role, "content": text} for role, text in example.turns]}
            if chat
            else {"prompt": plain_prompt(example, template)}
            for example in examples
        ]
        path = "chat/completions" if chat else "completions"
        replies = self.ask(path, [{**body, "max_tokens": max_new_tokens} for body in bodies])
        texts = [reply.text.strip() for reply in replies if reply.text is not None]
        if lost := [reply.why for reply in replies if reply.text is None]:
            raise StageError(
                f"model at {self.base_url}: no text for {len(lost)} of {len(replies)} prompts (the first: {lost[0]}), "
                "and a rate over the rest would be of other prompts"
            )
        return texts
