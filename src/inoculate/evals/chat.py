"""A language model behind an OpenAI-compatible endpoint (vLLM and others): requests, retries, keys.

Judges ask one, and a model that is served is measured through one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import NonNegativeInt, PositiveInt, field_validator

from inoculate.core.errors import InputError, StageError
from inoculate.core.types import Positive, Value

if TYPE_CHECKING:
    import httpx

BACKOFF_S = 0.5
"""First pause before a retry; it doubles each time, up to `MAX_PAUSE_S`. `Retry-After` takes precedence."""
MAX_PAUSE_S = 60.0


class Reply(NamedTuple):
    """The text that came back; None with the reason why there is none."""

    text: str | None
    why: str = ""


class Endpoint(Value):
    """Where a model is served, and how it is asked.

    Retried, with growing pauses: 429, 5xx, timeouts and lost connections.
    """

    what: ClassVar[str] = "model"
    """What messages call it."""
    base_url: str
    """Up to and without `/chat/completions`, e.g. `http://127.0.0.1:8000/v1`."""
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable with the key; unset means that none is sent. The key is never kept."""
    temperature: float | None = 0.0
    """None leaves it out: some models accept only their own."""
    timeout_s: Positive = 60.0
    max_retries: NonNegativeInt = 4
    max_concurrency: PositiveInt = 4

    @field_validator("base_url")
    @classmethod
    def _has_a_host(cls, base_url: str) -> str:
        import httpx

        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL as error:
            raise ValueError(f"not an address: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("expected an address such as http://127.0.0.1:8000/v1")
        if url.userinfo:
            raise ValueError("an address is kept with the results: a key belongs into the variable of `api_key_env`")
        return base_url.rstrip("/")

    def ask(self, path: str, bodies: Sequence[dict[str, Any]]) -> list[Reply]:
        """The replies to requests, in order, `max_concurrency` at a time; `model` and `temperature` are added.

        Args:
            path: `chat/completions` or `completions`.

        Raises:
            InputError: the endpoint refuses the key, the address or the model (a 3xx or 4xx reply).
            StageError: it cannot be reached, or still fails after `max_retries`.
        """
        import httpx

        if not bodies:
            return []
        fixed = {"model": self.model} | ({} if self.temperature is None else {"temperature": self.temperature})
        with (
            httpx.Client(timeout=self.timeout_s, headers=self._headers()) as client,
            ThreadPoolExecutor(self.max_concurrency) as pool,
        ):
            futures = [pool.submit(self._post, client, path, fixed | body) for body in bodies]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # one cause is enough: do not let the rest retry too
                raise

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            # Checked here, because the client would print the key in its own complaint.
            raise InputError(
                f"the key in {self.api_key_env} holds characters that a header cannot", field="api_key_env"
            )
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _post(self, client: httpx.Client, path: str, body: dict[str, Any]) -> Reply:
        import httpx

        problem = ""
        for attempt in range(self.max_retries + 1):
            pause = min(BACKOFF_S * 2**attempt, MAX_PAUSE_S)
            try:
                response = client.post(f"{self.base_url}/{path}", json=body)
            except httpx.RequestError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.status_code != 429 and response.status_code < 500:
                    return self._reply(response)
                problem = f"HTTP {response.status_code}"
                pause = _retry_after(response, pause)
            if attempt < self.max_retries:
                time.sleep(pause)
        raise StageError(f"{self.what} at {self.base_url}: {problem}, after {self.max_retries + 1} attempts")

    def _reply(self, response: httpx.Response) -> Reply:
        if response.status_code in (400, 413, 422):
            # this one request is not accepted (a content filter, its length); the next may be
            return Reply(None, f"HTTP {response.status_code}")
        if not response.is_success:
            raise InputError(
                f"the {self.what} at {self.base_url} does not accept the request",
                field="base_url",
                found=f"HTTP {response.status_code}",
                expected=f"an OpenAI-compatible endpoint that serves {self.model!r}, its key in {self.api_key_env}",
            )
        try:
            choice = response.json()["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return Reply(None, "a reply that is none of a completion")
        return Reply(text) if isinstance(text, str) else Reply(None, "a reply without text")


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    try:
        asked = float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return otherwise
    return min(max(asked, 0.0), MAX_PAUSE_S)
