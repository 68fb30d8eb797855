"""The gigachat handler: the vendor's SDK against a service on loopback that misbehaves."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from email.utils import formatdate
from http.server import ThreadingHTTPServer

import pytest
import structlog
from prometheus_client import CollectorRegistry, generate_latest

from gigaoffice_worker.core.errors import ConfigurationError, RejectedError, TransientError
from gigaoffice_worker.core.records import Deadline, Request
from gigaoffice_worker.handlers.environment import Environment
from gigaoffice_worker.handlers.failures import (
    AccessRefusedError,
    ConnectionFailedError,
    NoAnswerError,
    RateLimitedError,
    ServiceError,
    UnusableAnswerError,
)
from gigaoffice_worker.handlers.gigachat import GigaChatHandler
from gigaoffice_worker.handlers.loading import load
from gigaoffice_worker.handlers.prompts import CATEGORIES, Prompts, unwrapped
from tests.support.certificates import Authority
from tests.support.services import Service, answers, in_turn

SECRET_TEXT = "what the user asked"
CREDENTIALS = base64.b64encode(b"client:secret").decode()
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def completion(answer="42", **changes):
    body = {
        "choices": [{"message": {"role": "assistant", "content": answer}, "index": 0, "finish_reason": "stop"}],
        "created": 1,
        "model": "GigaChat-2:2.0",
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "precached_prompt_tokens": 2},
        "object": "chat.completion",
    }
    return answers(200, {**body, **changes})


def token(lifetime=1800):
    return answers(200, {"access_token": "tell-nobody-token", "expires_at": int((time.time() + lifetime) * 1000)})


def request(seconds=5.0, *, payload=None, headers=None):
    payload = payload if payload is not None else {"query": SECRET_TEXT}
    deadline = Deadline(time.monotonic() + seconds)
    return Request(payload, "r-1", b"key", headers or {}, 1, deadline, "requests", 2, 17, 0.0)


class GigaChat(Service):
    """Both halves of the service: the one that gives tokens and the one that chats."""

    def __init__(self, **options):
        super().__init__(**options)
        self.chat, self.auth = completion(), token()
        self.answer = lambda exchange: (self.auth if exchange.path == "/oauth" else self.chat)(exchange)

    def count(self, path):
        return sum(asked.path == path for asked in self.asked)

    @property
    def chats(self):
        return [asked for asked in self.asked if asked.path == "/api/v1/chat/completions"]


@pytest.fixture
def service():
    with GigaChat() as service:
        yield service


@pytest.fixture
def make(service, monkeypatch):
    """Construct a handler on the service: make(GIGACHAT_TIMEOUT="1"); closed at the end."""
    made = []
    level = logging.getLogger("gigachat").level

    def make(**environment):
        defaults = {
            "GIGACHAT_BASE_URL": f"{service.url}/api/v1",
            "GIGACHAT_AUTH_URL": f"{service.url}/oauth",
            "GIGACHAT_CREDENTIALS": CREDENTIALS,
            "GIGACHAT_MODEL": "GigaChat-2",
        }
        for name, value in {**defaults, **environment}.items():
            monkeypatch.setenv(name, value)
        handler = GigaChatHandler()
        made.append(handler)
        return handler

    yield make
    for handler in made:
        handler.close()
    logging.getLogger("gigachat").setLevel(level)


def failure(handler, asked=None):
    """Return what the handler raises, which must not give away anything of the request, the answer or the secrets."""
    with pytest.raises((RejectedError, TransientError)) as caught:
        handler(asked or request())
    text = f"{caught.value} {caught.value.__cause__}"
    for private in (SECRET_TEXT, "127.0.0.1", "tell-nobody", CREDENTIALS):
        assert private not in text
    assert str(caught.value)
    return caught.value


def text(result):
    """Return the text of a result, which must be one that succeeded."""
    assert result["success"] is True
    return result["result"]["text_content"]


def test_request_becomes_a_chat_and_the_answer_a_result(service, make):
    payload = {
        "query": "Сколько?",
        "category": "spreadsheet-search",
        "input_range": "A1:B2",
        "input_data": [[1, "я"], [2, None]],
        "created_at": 1_700_000_000.5,
    }
    result = make()(request(payload=payload))
    assert result["metadata"].pop("processing_time") >= 0
    assert result == {
        "success": True,
        "result": {"text_content": "42"},
        "metadata": {"total_tokens": 10, "model": "GigaChat-2:2.0", "request_id": "r-1"},
    }
    (asked,) = service.chats
    system, user = asked.json["messages"]
    assert asked.json["model"] == "GigaChat-2"
    assert not {"max_tokens", "temperature"} & asked.json.keys()
    assert system["role"] == "system"
    assert "ищешь в таблицах" in system["content"]
    assert user == {"role": "user", "content": 'Сколько?\n\nRange: A1:B2\n\nData:\n[[1,"я"],[2,null]]'}


def test_data_of_the_api_service_is_unwrapped_and_sent_as_plain_text(service, make):
    sheet = json.dumps({"worksheet": {"name": "Лист", "range": "A1"}, "data": {"rows": []}})
    data = [{"spreadsheet_data": sheet, "required_table_info": json.dumps({"needs_cell_values": True})}]
    service.chat = completion('{"worksheet": {}, "data": {}}')
    make()(request(payload={"query": "Q", "category": "spreadsheet-generation", "input_data": data}))
    content = service.chats[0].json["messages"][-1]["content"]
    assert content == (
        'Q\n\nData:\n{"spreadsheet_data":{"worksheet":{"name":"Лист","range":"A1"},"data":{"rows":[]}},'
        '"required_table_info":{"needs_cell_values":true}}'
    )
    assert "Лист".encode() in service.chats[0].body or b"\\u041b" in service.chats[0].body


@pytest.mark.parametrize(
    "data, expected",
    [
        (None, None),
        ("a;b", "a;b"),
        ({"spreadsheet_data": "{}"}, {"spreadsheet_data": "{}"}),
        ([{"spreadsheet_data": "{}"}], {"spreadsheet_data": {}}),
        ([{"spreadsheet_data": "{broken"}], {"spreadsheet_data": "{broken"}),
        ([{"spreadsheet_data": "text"}, {"n": 1}], [{"spreadsheet_data": "text"}, {"n": 1}]),
        (
            [{"name": "Цена", "range": "B2:B18", "series": "[1]"}, 5],
            [{"name": "Цена", "range": "B2:B18", "series": [1]}, 5],
        ),
        ([[1, 2]], [[1, 2]]),
    ],
)
def test_texts_of_json_within_the_data_are_json(data, expected):
    assert unwrapped(data) == expected


DOCUMENT = {"worksheet": {"name": "Лист1", "range": "A1:B2"}, "data": {"rows": [{"values": [1, "я"]}]}}
CHART = {"chart_type": "column", "title": "Продажи"}
BINS = {"source_columns": [1], "recommended_bins": 12}


def written(content):
    return json.dumps(content, ensure_ascii=False)


@pytest.mark.parametrize(
    "category, answer, result",
    [
        ("spreadsheet-generation", written(DOCUMENT), DOCUMENT),
        ("spreadsheet-transformation", f"Вот таблица:\n```json\n{written(DOCUMENT)}\n```\nГотово.", DOCUMENT),
        ("spreadsheet-formatting", f"  {written(DOCUMENT)} and {{more}}", DOCUMENT),
        ("spreadsheet-analysis", "Продажи растут.", {"text_content": "Продажи растут."}),
        ("spreadsheet-analysis", written(DOCUMENT), DOCUMENT),
        ("spreadsheet-search", " В ячейке {B2} ", {"text_content": "В ячейке {B2}"}),
        ("spreadsheet-assistance", '=СУММ(A1:A3) {"a": 1}', {"text_content": '=СУММ(A1:A3) {"a": 1}'}),
        ("data-chart", written(CHART), CHART),
        ("data-histogram", f"```{written(BINS)}```", BINS),
    ],
)
def test_each_category_has_its_kind_of_result(service, make, category, answer, result):
    service.chat = completion(answer)
    found = make()(request(payload={"query": "Q", "category": category}))
    assert (found["success"], found["result"]) == (True, result)
    assert len(service.chats) == 1


UNUSABLE = [
    ("spreadsheet-generation", "I cannot do that", "stop", "no JSON object with the fields worksheet and data"),
    ("spreadsheet-generation", '{"rows": []}', "stop", "no JSON object with the fields worksheet and data"),
    ("spreadsheet-generation", '{"worksheet": {}, "data": {"rows": [NaN]}}', "stop", "no JSON object with the fields"),
    ("spreadsheet-generation", written(DOCUMENT), "length", "cut off, because it was too long"),
    ("spreadsheet-formatting", "", "blacklist", "the model refused to answer"),
    ("spreadsheet-search", "", "stop", "the answer was empty"),
    ("data-chart", "[1]", "stop", "the answer was no JSON object"),
    ("data-chart", "{}", "stop", "the answer was no JSON object"),
    ("data-chart", '{"title": "t"}', "stop", "lacked the field chart_type"),
    ("data-histogram", "twelve", "stop", "the answer was no JSON object"),
]
GOOD = {"data-chart": CHART, "data-histogram": BINS, "spreadsheet-search": None}


def choice(answer, finish):
    message = {"role": "assistant", "content": answer}
    return completion(choices=[{"message": message, "index": 0, "finish_reason": finish}])


@pytest.mark.parametrize("category, answer, finish, told", UNUSABLE)
def test_an_answer_that_is_no_result_is_asked_for_once_more(service, make, category, answer, finish, told):
    good = GOOD.get(category, DOCUMENT)
    service.chat = in_turn(choice(answer, finish), completion(written(good) if good else "found"))
    found = make()(request(payload={"query": "Q", "category": category}))
    assert (found["success"], found["result"]) == (True, good or {"text_content": "found"})
    assert found["metadata"]["total_tokens"] == 20
    first, second = (asked.json["messages"] for asked in service.chats)
    assert second[: len(first)] == first
    assert told in second[-1]["content"]
    assert second[len(first) : -1] == ([{"role": "assistant", "content": answer}] if answer else [])


@pytest.mark.parametrize("category, answer, finish, told", UNUSABLE)
def test_a_second_answer_that_is_no_result_fails_the_request(service, make, category, answer, finish, told):
    service.chat = choice(answer, finish)
    found = make()(request(payload={"query": "Q", "category": category}))
    assert (found["success"], "result" in found) == (False, False)
    assert told in found["error"]
    assert found["error"].endswith(", also when asked once more")
    assert found["metadata"]["total_tokens"] == 20
    assert len(service.chats) == 2


@pytest.mark.parametrize("category", ["uncertain", "analysis", "unheard-of"])
def test_a_category_that_is_none_is_rejected_without_a_call(service, make, category):
    with pytest.raises(RejectedError, match="the category must be one of spreadsheet-generation, "):
        make()(request(payload={"query": "Q", "category": category}))
    assert service.asked == []


def test_every_category_has_a_prompt_of_its_own():
    prompts = Prompts(Environment())
    texts = {each: prompts.chat({"query": "Q", "category": each}).messages[0]["content"] for each in CATEGORIES}
    assert len(set(texts.values())) == len(CATEGORIES) == 8
    assert all(len(each) > 100 for each in texts.values())
    assert prompts.chat({"query": "Q"}).category == "spreadsheet-assistance"


def test_prompts_and_examples_of_ones_own_stand_before_the_question(service, make, tmp_path):
    own = tmp_path / "data-chart"
    own.mkdir()
    (own / "system_prompt.txt").write_text("Рисуй.\n")
    for number in (3, 1, 2, 4):
        lines = [f"task: Пример {number}", 'request_table: |\n  {"n": 1}', 'response_table: |\n  {"chart_type": "pie"}']
        (own / f"example_0{number}.yaml").write_text("\n".join(lines if number == 1 else [lines[0], lines[2]]))
    handler = make(GIGACHAT_PROMPTS=str(tmp_path))
    service.chat = completion(written(CHART))
    handler(request(payload={"query": "Q", "category": "data-chart"}))
    assert service.chats[0].json["messages"] == [
        {"role": "system", "content": "Рисуй."},
        {"role": "user", "content": 'Пример 1\n\nData:\n{"n":1}'},
        {"role": "assistant", "content": '{"chart_type": "pie"}'},
        {"role": "user", "content": "Пример 2"},
        {"role": "assistant", "content": '{"chart_type": "pie"}'},
        {"role": "user", "content": "Пример 3"},
        {"role": "assistant", "content": '{"chart_type": "pie"}'},
        {"role": "user", "content": "Q"},
    ]
    service.chat = completion(written(BINS))
    handler(request(payload={"query": "Q", "category": "data-histogram"}))
    assert "гистограммы" in service.chats[1].json["messages"][0]["content"]


@pytest.mark.parametrize("content", ["[", "text", "task: only a task", "- 1"])
def test_an_example_that_is_none_is_told_at_start(make, tmp_path, content):
    (tmp_path / "data-chart").mkdir()
    (tmp_path / "data-chart" / "example_1.yaml").write_text(content)
    with pytest.raises(ConfigurationError, match=r"example_1.yaml: must hold task and response_table"):
        make(GIGACHAT_PROMPTS=str(tmp_path))


def test_a_directory_of_prompts_that_is_not_there_is_told_at_start(make, tmp_path):
    with pytest.raises(ConfigurationError, match=r"GIGACHAT_PROMPTS=.*is not a directory"):
        make(GIGACHAT_PROMPTS=str(tmp_path / "nothing"))


def test_limits_of_an_answer_go_with_the_call(service, make):
    make(GIGACHAT_MAX_TOKENS="800", GIGACHAT_TEMPERATURE="0.1")(request())
    assert (service.chats[0].json["max_tokens"], service.chats[0].json["temperature"]) == (800, 0.1)


def test_names_of_the_api_service_get_a_hint(make):
    with structlog.testing.capture_logs() as lines:
        make(
            GIGACHAT_GENERATE_MODEL="x", GIGACHAT_MAX_REQUESTS_PER_MINUTE="20", GIGACHAT_TEMPERATUR="1", GIGACHAT_ZZ="1"
        )
    hints = {line["variable"]: line["hint"] for line in lines if line["event"] == "Variable ignored"}
    assert hints == {
        "GIGACHAT_GENERATE_MODEL": "did you mean GIGACHAT_MODEL?",
        "GIGACHAT_MAX_REQUESTS_PER_MINUTE": "did you mean WORKER_GROUP_RATE?",
        "GIGACHAT_TEMPERATUR": "did you mean GIGACHAT_TEMPERATURE?",
        "GIGACHAT_ZZ": "nothing reads it",
    }


def test_request_id_and_trace_go_with_the_call(service, make):
    handler = make()
    handler(request(headers={"traceparent": PARENT, "tracestate": b"a=1"}))
    handler(request(headers={"traceparent": b"bad"}))
    first, second = (asked.headers for asked in service.chats)
    assert (first["x-request-id"], first["traceparent"], first["tracestate"]) == ("r-1", PARENT.decode(), "a=1")
    assert not {"traceparent", "tracestate"} & second.keys()


@pytest.mark.parametrize(
    "payload",
    [{}, {"query": ""}, {"query": " "}, {"query": 5}, {"query": "Q", "category": 1}, {"query": "Q", "input_range": []}],
)
def test_request_that_is_no_question_is_rejected_without_a_call(service, make, payload):
    with pytest.raises(RejectedError):
        make()(request(payload=payload))
    assert service.asked == []


def test_token_is_fetched_once_and_kept(service, make):
    handler = make()
    for _ in range(3):
        handler(request())
    assert (service.count("/oauth"), len(service.chats)) == (1, 3)
    assert service.asked[0].headers["authorization"] == f"Basic {CREDENTIALS}"
    assert service.chats[0].headers["authorization"] == "Bearer tell-nobody-token"


@pytest.mark.parametrize("ahead", [2400.0, -2400.0, 10 * 365 * 86_400.0])
def test_a_clock_of_this_machine_that_is_wrong_costs_no_tokens(service, make, ahead):
    then = time.time() - ahead  # the service's clock, if this machine's is that far ahead
    body = {"access_token": "tell-nobody-token", "expires_at": int((then + 1800) * 1000)}
    service.auth = answers(200, body, {"Date": formatdate(then, usegmt=True)})
    handler = make()
    for _ in range(60):
        handler(request())
    assert (service.count("/oauth"), len(service.chats)) == (1, 60)


@pytest.mark.parametrize(
    "date", ["", "soon", "Thu, 99 Foo 1970 00:00:00 GMT", f"Thu, {'9' * 20} Jan 2026 10:00:00 GMT"]
)
def test_a_date_of_the_service_that_is_none_does_no_harm(service, make, date):
    answer = service.answer

    def dated(exchange):
        exchange.date_time_string = lambda: date
        answer(exchange)

    service.answer = dated
    handler = make()
    assert [text(handler(request())) for _ in range(2)] == ["42", "42"]
    assert service.count("/oauth") == 1


@pytest.mark.parametrize("expires_at", [1, -5, 2**62])
def test_an_expiry_that_makes_no_sense_still_lets_one_token_serve(service, make, expires_at):
    service.auth = answers(200, {"access_token": "tell-nobody-token", "expires_at": expires_at})
    handler = make()
    for _ in range(3):
        handler(request())
    assert (service.count("/oauth"), len(service.chats)) == (1, 3)


def test_many_threads_fetch_one_token(service, make):
    handler = make()
    threads = [threading.Thread(target=lambda: handler(request())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (service.count("/oauth"), len(service.chats)) == (1, 8)


def test_token_that_is_refused_is_replaced_within_the_attempt(service, make):
    service.chat = in_turn(completion(), answers(401), completion("43"))
    handler = make()
    assert [text(handler(request())) for _ in range(2)] == ["42", "43"]
    assert (service.count("/oauth"), len(service.chats)) == (2, 3)


def test_a_late_refusal_of_the_old_token_leaves_the_new_one(service, make):
    handler, found = make(), []
    handler(request())
    called, release = threading.Event(), threading.Event()
    service.chat = in_turn(
        lambda exchange: (called.set(), release.wait(10), exchange.reply(401)), answers(401), completion()
    )
    slow = threading.Thread(target=lambda: found.append(text(handler(request(10)))))
    slow.start()
    assert called.wait(10)
    found.append(text(handler(request())))
    release.set()
    slow.join()
    assert found == ["42", "42"]
    assert service.count("/oauth") == 2


def test_a_token_that_another_call_waits_for_is_waited_for_until_the_deadline(service, make):
    called, release = threading.Event(), threading.Event()
    answer = service.auth
    service.auth = lambda exchange: (called.set(), release.wait(10), answer(exchange))
    handler, found = make(), []
    slow = threading.Thread(target=lambda: found.append(text(handler(request(10)))))
    slow.start()
    assert called.wait(10)
    asked = request(0.2)
    error = failure(handler, asked)
    late = time.monotonic() - asked.deadline._at
    release.set()
    slow.join()
    assert type(error) is NoAnswerError
    assert 0 <= late < 5
    assert (found, service.count("/oauth")) == (["42"], 1)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_wrong_credentials_hold_all_calls_and_cost_no_request(service, make, status):
    service.auth = answers(status, b'{"message": "tell-nobody"}')
    error = failure(make())
    assert type(error) is AccessRefusedError
    assert error.shared
    assert str(status) in str(error)
    assert "GIGACHAT_ credentials" in str(error)
    assert service.chats == []


@pytest.mark.parametrize("status", [401, 402, 403])
def test_refusal_of_the_worker_itself_holds_all_calls(service, make, status):
    service.chat = answers(status, b"tell-nobody")
    error = failure(make())
    assert type(error) is AccessRefusedError
    assert error.shared


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_bad_request_is_rejected(service, make, status):
    service.chat = answers(status, b'{"message": "tell-nobody"}')
    assert type(failure(make())) is RejectedError
    assert len(service.chats) == 1


@pytest.mark.parametrize("half", ["auth", "chat"])
@pytest.mark.parametrize(
    "status, headers, expected, shared, wait",
    [
        (429, {"Retry-After": "9"}, RateLimitedError, True, 9.0),
        (429, {}, RateLimitedError, True, None),
        (503, {"Retry-After": "9"}, RateLimitedError, True, 9.0),
        (503, {}, ServiceError, False, None),
        (500, {}, ServiceError, False, None),
        (502, {}, ServiceError, False, None),
        (504, {}, ServiceError, False, None),
    ],
)
def test_limits_close_the_gate_and_failures_are_tried_again(
    service, make, half, status, headers, expected, shared, wait
):
    setattr(service, half, answers(status, b"tell-nobody", headers))
    error = failure(make(GIGACHAT_MAX_RETRIES="5"))
    assert type(error) is expected
    assert (error.shared, error.retry_after) == (shared, wait)
    # The SDK's own retries are off, whatever the environment says.
    assert len(service.asked) == (1 if half == "auth" else 2)


def _compressed(exchange, status, headers):
    exchange.reply(status, b"\x1f\x8b", {**headers, "Content-Encoding": "gzip"})


def _too_large(exchange, status, headers):
    exchange.reply(status, b"x" * 5_000_000, headers)


def _broken_off(exchange, status, headers):
    exchange.start(status, {**headers, "Content-Length": "100"})
    exchange.connection.sendall(b"x")
    exchange.hang_up()


def _stalled(exchange, status, headers):
    exchange.start(status, {**headers, "Content-Length": "100"})
    exchange.connection.sendall(b"x")
    exchange.pause(30)


@pytest.mark.parametrize("odd", [_compressed, _too_large, _broken_off, _stalled])
@pytest.mark.parametrize(
    "status, headers, expected, wait",
    [
        (429, {"Retry-After": "20"}, RateLimitedError, 20.0),
        (503, {"Retry-After": "20"}, RateLimitedError, 20.0),
        (500, {}, ServiceError, None),
        (401, {}, AccessRefusedError, None),
        (400, {}, RejectedError, None),
    ],
)
def test_a_refusal_is_heard_at_once_whatever_its_body(service, make, odd, status, headers, expected, wait):
    service.chat = lambda exchange: odd(exchange, status, headers)
    asked = request(60)
    error = failure(make(), asked)
    assert type(error) is expected
    assert getattr(error, "retry_after", None) == wait
    assert asked.deadline.remaining() > 45


@pytest.mark.parametrize(
    "answer",
    [
        answers(200, b""),
        answers(200, b"<html>tell-nobody"),
        answers(200, {}),
        answers(200, [1]),
        completion(usage={"prompt_tokens": "tell-nobody"}),
        completion(choices=[]),
        answers(200, b"\x1f\x8b", {"Content-Encoding": "gzip"}),
    ],
)
def test_success_that_is_no_completion_is_tried_again(service, make, answer):
    service.chat = answer
    assert type(failure(make())) is UnusableAnswerError


@pytest.mark.parametrize(
    "answer", [answers(200, b"tell-nobody"), answers(200, {}), answers(200, [1]), answers(200, {"tok": "t"})]
)
def test_token_that_cannot_be_read_is_asked_for_again(service, make, answer):
    service.auth = in_turn(answer, token())
    handler = make()
    assert type(failure(handler)) is UnusableAnswerError
    assert text(handler(request())) == "42"


def test_too_large_an_answer_is_rejected(service, make):
    service.chat = completion("x" * 5_000_000)
    assert type(failure(make())) is RejectedError


def _silent(exchange):
    exchange.pause(30)


def _dripping(exchange):
    exchange.start(200, {"Content-Length": "1000"})
    exchange.drip(b" " * 1000, 0.05)


@pytest.mark.parametrize("half", ["auth", "chat"])
@pytest.mark.parametrize("answer", [_silent, _dripping])
def test_the_deadline_bounds_token_and_chat_together(service, make, half, answer):
    setattr(service, half, answer)
    asked = request(0.4)
    assert type(failure(make(), asked)) is NoAnswerError
    assert asked.deadline.remaining() < 0.1
    assert asked.deadline._at > time.monotonic() - 10


def test_no_request_is_to_blame_where_no_connection_is_free(service, make):
    called, release = threading.Event(), threading.Event()
    answer = service.chat
    service.chat = lambda exchange: (called.set(), release.wait(10), answer(exchange))
    handler, found = make(GIGACHAT_MAX_CONNECTIONS="1"), []
    slow = threading.Thread(target=lambda: found.append(text(handler(request(10)))))
    slow.start()
    assert called.wait(10)
    error = failure(handler, request(0.1))
    release.set()
    slow.join()
    assert (type(error), error.shared) == (ConnectionFailedError, True)
    assert "no connection was free" in str(error)
    assert (found, len(service.chats)) == (["42"], 1)


@pytest.mark.parametrize(
    "connections, threads, group, warnings",
    [("2", "3", "", 1), ("2", "3", "3", 1), ("2", "3", "2", 0), ("3", "3", "", 0)],
)
def test_fewer_connections_than_calls_at_once_are_warned_of(make, connections, threads, group, warnings):
    limits = {"WORKER_CONCURRENCY": threads, "WORKER_GROUP_CONCURRENCY": group}
    with structlog.testing.capture_logs() as lines:
        make(GIGACHAT_MAX_CONNECTIONS=connections, **limits)
    hints = [line["hint"] for line in lines if line["event"] == "Fewer connections than calls at once"]
    assert [all(name in hint for name in limits) for hint in hints] == [True] * warnings


def test_time_out_of_the_sdk_bounds_a_call_where_it_is_set(service, make):
    service.chat = _silent
    asked = request(30)
    assert type(failure(make(GIGACHAT_TIMEOUT="0.3"), asked)) is NoAnswerError
    assert asked.deadline.remaining() > 28


def test_a_service_that_is_not_there_is_tried_again(make):
    with ThreadingHTTPServer(("127.0.0.1", 0), None) as nobody:
        port = nobody.server_address[1]
    handler = make(GIGACHAT_AUTH_URL=f"http://127.0.0.1:{port}/oauth")
    assert type(failure(handler)) is ConnectionFailedError


def test_redirects_are_not_followed(service, make):
    service.chat = answers(302, b"", {"Location": f"{service.url}/elsewhere"})
    assert type(failure(make())) is RejectedError
    assert len(service.chats) == 1


def test_user_and_password_get_a_token_too(service, make):
    service.answer = lambda exchange: (
        answers(200, {"tok": "t", "exp": 2**50}) if exchange.path == "/api/v1/token" else completion()
    )(exchange)
    handler = make(GIGACHAT_CREDENTIALS="", GIGACHAT_USER="user", GIGACHAT_PASSWORD="tell-nobody")
    assert text(handler(request())) == "42"
    assert [asked.path for asked in service.asked] == ["/api/v1/token", "/api/v1/chat/completions"]


def test_secrets_come_out_of_files(service, make, tmp_path):
    (tmp_path / "credentials").write_text(f"{CREDENTIALS}\n")
    make(GIGACHAT_CREDENTIALS="", GIGACHAT_CREDENTIALS_FILE=str(tmp_path / "credentials"))(request())
    assert service.asked[0].headers["authorization"] == f"Basic {CREDENTIALS}"


def test_credentials_are_read_again_from_their_file_when_they_are_refused(service, make, tmp_path):
    file, new = tmp_path / "credentials", base64.b64encode(b"client:new").decode()
    file.write_text(CREDENTIALS)
    given = token()
    service.auth = lambda exchange: (given if exchange.headers["Authorization"] == f"Basic {new}" else answers(401))(
        exchange
    )
    handler = make(GIGACHAT_CREDENTIALS="", GIGACHAT_CREDENTIALS_FILE=str(file))
    assert type(failure(handler)) is AccessRefusedError
    file.unlink()
    assert type(failure(handler)) is AccessRefusedError
    file.write_text(new)
    assert text(handler(request())) == "42"
    assert service.count("/oauth") == 4


def test_mutual_tls_needs_no_token(make, tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("client", password=b"pass word")
    with GigaChat(certificate=authority.issue("localhost"), client_authority=authority.file) as secure:
        handler = make(
            GIGACHAT_MODE="mtls",
            GIGACHAT_CREDENTIALS="",
            GIGACHAT_BASE_URL=f"https://localhost:{secure.port}/api/v1",
            GIGACHAT_CA_BUNDLE_FILE=authority.file,
            GIGACHAT_CERT_FILE=certificate,
            GIGACHAT_KEY_FILE=key,
            GIGACHAT_KEY_FILE_PASSWORD="pass word",
        )
        assert text(handler(request())) == "42"
        assert [asked.path for asked in secure.asked] == ["/api/v1/chat/completions"]
        assert "authorization" not in secure.asked[0].headers


def test_certificates_are_verified_unless_that_is_switched_off(make, tmp_path):
    with GigaChat(certificate=Authority(tmp_path).issue("localhost")) as secure:
        url = {"GIGACHAT_BASE_URL": f"https://localhost:{secure.port}/api/v1", "GIGACHAT_ACCESS_TOKEN": "t"}
        error = failure(make(**url, GIGACHAT_CREDENTIALS=""))
        assert type(error) is AccessRefusedError
        assert "not trusted" in str(error)
        assert make(**url, GIGACHAT_VERIFY_SSL_CERTS="false")(request())["result"] == {"text_content": "42"}


def test_tokens_are_counted_in_the_workers_registry(make):
    handler, registry = make(), CollectorRegistry()
    handler.register_metrics(registry)

    def count(kind):
        labels = {"model": "GigaChat-2", "kind": kind}
        return registry.get_sample_value("gigaoffice_worker_gigachat_tokens_total", labels)

    assert [count(kind) for kind in ("prompt", "completion", "precached")] == [0, 0, 0]
    handler(request())
    handler(request())
    assert [count(kind) for kind in ("prompt", "completion", "precached")] == [14, 6, 4]
    assert b"gigaoffice_worker_gigachat_tokens_total" in generate_latest(registry)


def test_tokens_of_an_answer_without_choices_are_counted_too(service, make):
    service.chat = completion(choices=[])
    handler, asked, registry = make(), request(), CollectorRegistry()
    handler.register_metrics(registry)
    assert type(failure(handler, asked)) is UnusableAnswerError
    assert [(used.input_tokens, used.output_tokens) for used in asked.used] == [(7, 3)]
    labels = {"model": "GigaChat-2", "kind": "prompt"}
    assert registry.get_sample_value("gigaoffice_worker_gigachat_tokens_total", labels) == 7


def test_dry_run_asks_nobody(service, make):
    handler = make(GIGACHAT_MODE="dryrun", GIGACHAT_CREDENTIALS="", GIGACHAT_MODEL="")
    result = handler(request())
    assert result["metadata"].items() >= {"model": "dryrun", "total_tokens": 0}.items()
    assert result["result"]["text_content"].startswith("Dry run: 2 messages")
    assert service.asked == []
    with pytest.raises(RejectedError):
        handler(request(payload={}))


def test_no_secret_shows_in_a_repr(make):
    handler = make(GIGACHAT_PASSWORD="tell-nobody", GIGACHAT_USER="u")
    assert CREDENTIALS not in f"{handler!r} {vars(handler)!r} {vars(handler._model)!r}"


def test_all_wrong_variables_are_told_at_once_and_no_secret_with_them(make, tmp_path):
    (tmp_path / "password").write_text("tell-nobody")
    with pytest.raises(ConfigurationError) as caught:
        make(
            GIGACHAT_MODE="mtls",
            GIGACHAT_PASSWORD="tell-nobody",
            GIGACHAT_PASSWORD_FILE=str(tmp_path / "password"),
            GIGACHAT_CERT_FILE=str(tmp_path / "missing"),
            GIGACHAT_CA_BUNDLE_FILE=__file__,
            GIGACHAT_BASE_URL="localhost",
            GIGACHAT_MODEL=" ",
            GIGACHAT_USE_ENV_PROXY="perhaps",
        )
    for name in ("PASSWORD", "CERT_FILE", "KEY_FILE", "CA_BUNDLE_FILE", "BASE_URL", "MODEL", "USE_ENV_PROXY"):
        assert f"GIGACHAT_{name}" in str(caught.value)
    assert "tell-nobody" not in str(caught.value)


@pytest.mark.parametrize(
    "name, value",
    [
        ("GIGACHAT_MODE", "clouds"),
        ("GIGACHAT_TIMEOUT", "soon"),
        ("GIGACHAT_VERIFY_SSL_CERTS", "perhaps"),
        ("GIGACHAT_MAX_CONNECTIONS", "many"),
        ("GIGACHAT_MAX_CONNECTIONS", "0"),
        ("GIGACHAT_MAX_CONNECTIONS", "-1"),
        ("GIGACHAT_FLAGS", "no json"),
        ("GIGACHAT_CREDENTIALS", ""),
        ("GIGACHAT_MODEL", ""),
        ("GIGACHAT_CERT_FILE", __file__),
    ],
)
def test_a_wrong_variable_is_named(make, name, value):
    with pytest.raises(ConfigurationError, match=r"flags|" + name):
        make(**{name: value})


def test_an_empty_variable_counts_as_unset(make):
    names = ("PROFANITY_CHECK", "FLAGS", "TIMEOUT", "CA_BUNDLE_FILE", "MAX_CONNECTIONS", "MODE", "VERIFY_SSL_CERTS")
    assert make(**{f"GIGACHAT_{name}": "" for name in names})(request())["result"] == {"text_content": "42"}


def test_the_worker_loads_it_by_its_short_name(monkeypatch):
    monkeypatch.setenv("GIGACHAT_MODE", "dryrun")
    handler = load("gigachat")
    assert handler.call(request())["metadata"]["model"] == "dryrun"
    registry = CollectorRegistry()
    handler.register_metrics(registry)
    assert b"gigachat_tokens" in generate_latest(registry)
    handler.close()
