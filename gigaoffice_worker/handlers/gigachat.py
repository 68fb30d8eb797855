"""The handler that asks GigaChat, in the API service's own dialect: a spreadsheet question in, its result out."""

from __future__ import annotations

import time
from collections import Counter as Totals
from typing import Any, Protocol

from environs import validate
from prometheus_client import CollectorRegistry, Counter

from gigaoffice_worker.core.records import Request
from gigaoffice_worker.handlers.answers import NotUsableError, result_of
from gigaoffice_worker.handlers.environment import Environment
from gigaoffice_worker.handlers.failures import UnusableAnswerError
from gigaoffice_worker.handlers.prompts import Chat, Completion, Message, Prompts
from gigaoffice_worker.observe.metrics import PREFIX

MODES = ("cloud", "mtls", "dryrun")
_KINDS = {"prompt_tokens": "prompt", "completion_tokens": "completion", "precached_prompt_tokens": "precached"}


class GigaChatHandler:
    """Asks GigaChat as GIGACHAT_MODE says. Its variables and what each error means are in docs/gigaoffice.md."""

    def __init__(self) -> None:
        env = Environment()
        mode = env.str("GIGACHAT_MODE", "cloud", validate=validate.OneOf(MODES))
        self._prompts = Prompts(env)
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
        """Return `success`, `result` or `error`, and `metadata`, as the API service does.

        An answer that is no result is asked for once more, with what was wrong with it; then the request has failed:
        both answers are paid for. Raises RejectedError or TransientError.
        """
        started = time.monotonic()
        chat = self._prompts.chat(request.payload)
        used: Totals[str] = Totals()
        answered = self._ask(chat.messages, request, used)
        try:
            found = {"success": True, "result": result_of(chat.category, answered)}
        except NotUsableError as error:
            answered = self._ask(_again(chat, answered, error), request, used)
            try:
                found = {"success": True, "result": result_of(chat.category, answered)}
            except NotUsableError as again:
                found = {"success": False, "error": f"{again}, also when asked once more"}
        metadata = {
            "total_tokens": used["total_tokens"],
            "model": answered.model,
            "processing_time": round(time.monotonic() - started, 3),
            "request_id": request.id,
        }
        return {**found, "metadata": metadata}

    def _ask(self, messages: list[Message], request: Request, used: Totals[str]) -> Completion:
        answered = self._model.complete(messages, request)
        used.update(answered.usage)
        request.usage(
            input_tokens=max(0, answered.usage.get("prompt_tokens", 0)),
            output_tokens=max(0, answered.usage.get("completion_tokens", 0)),
            model=answered.model or self._model.name,
        )
        for name, kind in _KINDS.items():
            self._tokens.labels(self._model.name, kind).inc(max(0, answered.usage.get(name, 0)))
        # Only now, because its tokens are paid for all the same.
        if not answered.has_answer:
            raise UnusableAnswerError("the model answered nothing")
        return answered

    def register_metrics(self, registry: CollectorRegistry) -> None:
        """Add the token counter to the worker's metrics."""
        registry.register(self._tokens)

    def close(self) -> None:
        """Close the connections."""
        self._model.close()


def _again(chat: Chat, answered: Completion, error: NotUsableError) -> list[Message]:
    """Return the chat gone on with: what was answered, and what was wrong with it."""
    said = [{"role": "assistant", "content": answered.answer}] if answered.answer.strip() else []
    asked = f"This cannot be used: {error}. Answer again, briefly, and only in the form that was asked for."
    return [*chat.messages, *said, {"role": "user", "content": asked}]


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
        characters = sum(len(message["content"]) for message in messages)
        # Whatever the category, it is a result: the fields of a document and of a chart, and some text.
        answer = (
            '{"worksheet": {"name": "dry run"}, "data": {"rows": []}, "chart_type": "none", "text_content": '
            f'"Dry run: {len(messages)} messages with {characters} characters would be sent."}}'
        )
        return Completion(answer, self.name, "stop", {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})

    def close(self) -> None:
        """Close nothing: nothing was opened."""
