"""One vLLM server: the calls that this engine makes of it, and what went wrong in our own words.

In: bodies of `wire`. Out: answers, or ServerAway (try another server, or later), AdapterLost (it does not know the
name, or answered under another), BadArtifact (it cannot load the adapter) and InternalError (it refuses what we say).
Never puts into a message what a server says about a request: that may repeat its tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from plaudit.engine.vllm import wire
from plaudit.errors import BadArtifact, EngineUnavailable, InternalError, Misconfigured

_CONNECT_SECONDS = 3.0
_LOAD_SECONDS = 120.0
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
# A series for each set of adapters that ran; all of one server say the same number.
_MAX_LORAS = re.compile(r'^vllm:lora_requests_info\{[^}\n]*\bmax_lora="(\d{1,9})"', re.MULTILINE)
_GARBLED = (KeyError, IndexError, TypeError, ValueError)


class Unanswered(Exception):
    """A request without an answer, which another server or another try may give; never leaves the engine."""

    def __init__(self, message: str, server: str) -> None:
        super().__init__(message)
        self.message = message
        self.server = server

    def as_ours(self) -> EngineUnavailable:
        """What a caller is told after the last try."""
        return EngineUnavailable(f"{self.message}; retry", servers=self.server)


class ServerAway(Unanswered):
    """A server does not answer. `under_way`: it had the request, so that the request may be what ended it."""

    def __init__(self, message: str, server: str, *, under_way: bool = False) -> None:
        super().__init__(message, server)
        self.under_way = under_way


class AdapterLost(Unanswered):
    """A server does not know an adapter that was loaded into it: it was restarted, or somebody unloaded it."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says of itself: the name of its base, the adapters that it knows, its longest context."""

    base: str
    adapters: frozenset[str]
    context_length: int


class Server:
    """A server by its address; its methods belong to one event loop."""

    def __init__(self, address: str, *, api_key: str, silence_seconds: float) -> None:
        self.address = address.rstrip("/")
        self._client = httpx.AsyncClient(
            base_url=self.address,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(silence_seconds, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            # A proxy of the environment would come between an engine and its servers.
            trust_env=False,
        )

    async def served(self) -> Served:
        """Base, adapters and context, if its engine is well."""
        await self._get("/health")
        answer = self._read(await self._get("/v1/models"))
        try:
            cards = answer["data"]
            base = next(card for card in cards if not card.get("parent"))
            adapters = frozenset(str(card["id"]) for card in cards if card.get("parent"))
            return Served(str(base["id"]), adapters, int(base.get("max_model_len") or 0))
        except (*_GARBLED, StopIteration) as error:
            raise self._strange("/v1/models", error) from error

    async def max_loras(self) -> int | None:
        """Places for adapters (--max-loras), by its metrics; None if it does not say, as before its first request."""
        try:
            response = await self._client.get("/metrics")
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        # Whatever else answers in its stead (a proxy, a server without metrics) has nothing to say of it.
        found = _MAX_LORAS.findall(response.text) if response.is_success else []
        return min(map(int, found), default=None)

    async def load(self, name: str, path: str) -> None:
        """Loads an adapter, unless one of this name is there; raises BadArtifact with the server's words."""
        response = await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, _LOAD_SECONDS)
        words = _words(response)
        if response.is_success or "already been loaded" in words:
            return
        if response.status_code in (404, 405) and "lora" not in words.lower():
            raise Misconfigured(
                f"the vLLM server at {self.address} loads no adapters while it runs: start it with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora",
                setting="engine.vllm.servers",
            )
        if response.status_code in _RETRYABLE - {500}:  # 500 is how it says that it cannot load an adapter
            raise self._away(f"status {response.status_code}")
        raise BadArtifact(f"the vLLM server at {self.address} cannot load the adapter in {path}: {words[:300]}")

    async def unload(self, name: str) -> None:
        """Forgets an adapter; requests under way keep it. Nothing happens if the server does not know it."""
        response = await self._post("/v1/unload_lora_adapter", {"lora_name": name})
        if not response.is_success and response.status_code not in (400, 404):
            raise self._away(f"status {response.status_code}")

    async def ask(self, body: wire.Body) -> Mapping[str, Any]:
        """A completion's answer as a whole."""
        response = await self._post("/v1/completions", body)
        self._check(response, body["model"])
        answer = self._read(response)
        self._check_name(answer.get("model"), body["model"])
        return answer

    async def stream(self, body: wire.Body) -> AsyncGenerator[wire.Drawn, None]:
        """A completion's pieces as they come; closing the iterator ends it at the server."""
        try:
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                if not response.is_success:
                    await response.aread()
                self._check(response, body["model"])
                async for line in response.aiter_lines():
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or data == "[DONE]":
                        continue
                    piece = json.loads(data)
                    if "error" in piece:  # what breaks a request under way is told in its stream
                        raise self._away("it broke the answer off", under_way=True)
                    found = wire.drawn(piece)
                    self._check_name(found.model, body["model"])
                    yield found
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        except _GARBLED as error:
            raise self._strange("/v1/completions", error) from error

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _get(self, path: str) -> httpx.Response:
        try:
            response = await self._client.get(path)
        except httpx.HTTPError as error:
            raise self._lost(error) from error
        self._check(response, "")
        return response

    async def _post(self, path: str, body: Mapping[str, Any], seconds: float | None = None) -> httpx.Response:
        timeout = httpx.USE_CLIENT_DEFAULT if seconds is None else httpx.Timeout(seconds, connect=_CONNECT_SECONDS)
        try:
            return await self._client.post(path, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise self._lost(error) from error

    def _read(self, response: httpx.Response) -> Mapping[str, Any]:
        try:
            answer = response.json()
        except ValueError as error:
            raise self._strange(str(response.url.path), error) from error
        if not isinstance(answer, Mapping):
            raise self._strange(str(response.url.path), TypeError())
        return answer

    def _check(self, response: httpx.Response, name: str) -> None:
        status = response.status_code
        if response.is_success:
            return
        if status in (401, 403):
            raise Misconfigured(
                f"the vLLM server at {self.address} wants another key (status {status}); set engine.vllm.api_key",
                setting="engine.vllm.api_key",
            )
        if status == 404 and name:
            raise AdapterLost(f"the vLLM server at {self.address} does not know {name}", self.address)
        if status in _RETRYABLE:
            raise self._away(f"status {status}", under_way=status == 500)
        raise InternalError(
            f"the vLLM server at {self.address} refuses a request with status {status}; its logs say why"
        )

    def _check_name(self, answered: object, asked: str) -> None:
        """A server or something before it may answer an unknown name with the base: then it says the base's."""
        if answered != asked:
            raise AdapterLost(f"the vLLM server at {self.address} did not answer as {asked}", self.address)

    def _lost(self, error: httpx.HTTPError) -> ServerAway:
        before = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        return self._away(type(error).__name__, under_way=not before)

    def _away(self, why: str, *, under_way: bool = False) -> ServerAway:
        words = f"the vLLM server at {self.address} does not answer ({why})"
        return ServerAway(words, self.address, under_way=under_way)

    def _strange(self, what: str, error: Exception) -> InternalError:
        return InternalError(
            f"the vLLM server at {self.address} answers {what} otherwise than vLLM does ({type(error).__name__}); "
            "docs/vllm.md names the versions"
        )


def _words(response: httpx.Response) -> str:
    """What a server says about an adapter."""
    try:
        answer = response.json()
        return str(answer["error"]["message"])
    except _GARBLED:
        return response.text
