"""The handler that asks GigaChat: the request becomes a chat; answer, model and token usage are the result."""

from __future__ import annotations

from typing import Any, Protocol

from environs import validate
from prometheus_client import CollectorRegistry, Counter

from gigaoffice_worker.core.records import Request
from gigaoffice_worker.handlers.environment import Environment
from gigaoffice_worker.handlers.prompts import Completion, Message, chat
from gigaoffice_worker.observe.metrics import PREFIX

MODES = ("cloud", "mtls", "dryrun")
_KINDS = {"prompt_tokens": "prompt", "completion_tokens": "completion", "precached_prompt_tokens": "precached"}


class GigaChatHandler:
    """Asks GigaChat as GIGACHAT_MODE says. Its variables and what each error means are in docs/handlers.md."""

    def __init__(self) -> None:
        env = Environment()
        mode = env.str("GIGACHAT_MODE", "cloud", validate=validate.OneOf(MODES))
        self._model = _DryRun(env) if mode == "dryrun" else _model(env, mode)
        self._tokens = Counter(
            f"{PREFIX}gigachat_tokens_total",
            "Tokens that GigaChat has counted, by kind (prompt, completion, precached).",
            ["model", "kind"],
            registry=None,
        )
        for kind in _KINDS.values():
            self._tokens.labels(self._model.name, kind)

    def __call__(self, request: Request) -> dict[str, Any]:
        """Return answer, model, finish_reason and usage. Raises RejectedError or TransientError."""
        found = self._model.complete(chat(request.payload), request)
        for name, kind in _KINDS.items():
            self._tokens.labels(self._model.name, kind).inc(max(0, found.usage.get(name, 0)))
        return found._asdict()

    def register_metrics(self, registry: CollectorRegistry) -> None:
        """Add the token counter to the worker's metrics."""
        registry.register(self._tokens)

    def close(self) -> None:
        """Close the connections."""
        self._model.close()


class _Model(Protocol):
    name: str

    def complete(self, messages: list[Message], request: Request) -> Completion: ...

    def close(self) -> None: ...


def _model(env: Environment, mode: str) -> _Model:
    # Here, because a dry run needs no SDK.
    from gigaoffice_worker.handlers.gigachat_client import Model  # noqa: PLC0415

    return Model(env, mutual_tls=mode == "mtls")


class _DryRun:
    """Answers without a network, and says what would have been asked."""

    name = "dryrun"

    def __init__(self, env: Environment) -> None:
        env.check()

    def complete(self, messages: list[Message], request: Request) -> Completion:  # noqa: ARG002
        letters = sum(len(message["content"]) for message in messages)
        answer = f"Dry run: {len(messages)} messages with {letters} characters would be sent."
        return Completion(answer, self.name, "stop", {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})

    def close(self) -> None:
        """Close nothing: nothing was opened."""
