"""The status page of a working worker in a real browser: live, harmless, readable in every light and width."""

from __future__ import annotations

import json
import re
import signal

import pytest

from tests.conftest import RUN, TopicSet, settings
from tests.support import wire
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess
from tests.system.browser import Browser
from tests.system.conftest import need

EVIL = "<img src=x onerror=\"document.title='owned'\">"
TOPICS = TopicSet(f"{RUN}-page-requests", f"{RUN}-page-responses", f"{RUN}-page-dlq", f"{RUN}{EVIL}")
COMMITTED = "[...document.querySelectorAll('#partitions tr')].map(row => row.cells[3].textContent)"
# WCAG 2: the ratio of the relative luminances of text and of what is behind it, as the smallest of the page.
CONTRAST = """(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = color => color.slice(0, 3).map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = node => { const c = rgb(getComputedStyle(node).backgroundColor);
    return c.length > 3 && c[3] === 0 ? behind(node.parentElement) : c; };
  const ratios = [...document.body.querySelectorAll("*")]
    .filter(node => node.checkVisibility() && [...node.childNodes].some(c => c.nodeType === 3 && c.data.trim()))
    .map(node => [light(rgb(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a))
    .map(([high, low]) => (high + .05) / (low + .05));
  return Math.min(...ratios);
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    need("chromium", root=False, because="chromium")
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def worker(browser, kafka_bootstrap, tmp_path_factory):
    environment = {
        **settings(kafka_bootstrap, TOPICS),
        "WORKER_HANDLER": "tests.system.desk:handle",
        "WORKER_MAX_ATTEMPTS": "1",
        "WORKER_TENANT_FIELD": "tenant",
    }
    with WorkerProcess(tmp_path_factory.mktemp("worker"), environment) as worker:
        yield worker.wait_ready()
        worker.stop()


@pytest.fixture
def send(kafka_bootstrap):
    def send(*payloads):
        records = [(None, json.dumps(payload).encode(), []) for payload in payloads]
        wire.produce(kafka_bootstrap, TOPICS.requests, records)

    return send


@pytest.fixture
def opened(browser, worker):
    def opened(**taste):
        return browser.open(f"http://127.0.0.1:{worker.port()}/", **taste)

    return opened


def test_page_complains_of_nothing_and_asks_nobody_but_the_worker(opened, worker):
    page = opened()
    asked = f"http://127.0.0.1:{worker.port()}"
    eventually(lambda: page.requests().count(f"{asked}/status") >= 2, "the page to ask twice", timeout=15)
    assert {url.removeprefix(asked) for url in page.requests()} == {"/", "/status"}
    assert page.complaints() == []
    assert "running, ready" in page.text()


def test_values_and_lines_move_by_themselves(opened, send):
    page = opened()
    born = page.evaluate("performance.timeOrigin")
    before = page.evaluate(COMMITTED)
    assert len(before) == 3
    send(*[{"query": "x", "seconds": 0.01}] * 30)
    eventually(lambda: page.evaluate(COMMITTED) != before, "the committed offsets to move", timeout=15)
    points = "document.querySelector('polyline').getAttribute('points').split(' ').length"
    eventually(lambda: page.evaluate(points) >= 3, "the line to grow", timeout=15)
    assert page.evaluate("performance.timeOrigin") == born


def test_oldest_unfinished_request_is_named_while_it_runs(opened, send):
    page = opened()
    send({"id": "slow-one", "seconds": 6})
    running = re.compile(r"slow-one · running · attempt 1 · .* · offset \d+")
    eventually(lambda: running.search(page.text()), "the request to show", timeout=15)


def test_answers_and_dead_letters_are_told_apart_and_the_letters_have_reasons(opened, send):
    page = opened()
    send(*[{"id": f"bad-{number}", "raise": "no good"} for number in range(5)], {"seconds": 0.01})
    text = eventually(lambda: (seen := page.text()) and "attempts-exhausted" in seen and seen, "the reason", timeout=15)
    assert re.search(r"\d+ attempts-exhausted", text)
    failures = "[...document.querySelectorAll('#failures tr')].map(row => [...row.cells].map(cell => cell.innerText))"
    kind = next(row for row in page.evaluate(failures) if "bad-" in row[3])
    assert int(kind[2]) >= 5
    assert "desk.py" in kind[1]
    assert kind[5] == "dead letter: attempts-exhausted"


def test_tenants_that_wait_are_named(opened, send):
    page = opened()
    send(*[{"tenant": f"crowd {EVIL}", "seconds": 0.5}] * 120)
    tenants = "[...document.querySelectorAll('#tenants tr')].map(row => row.cells[0].innerText)"
    eventually(lambda: any("crowd <img" in name for name in page.evaluate(tenants)), "the tenant to show", timeout=15)
    eventually(lambda: page.evaluate("document.getElementById('by_tenant').hidden"), "nobody to wait", timeout=30)
    assert page.complaints() == []


def test_worker_that_does_not_answer_is_said_until_it_does(opened, worker):
    page = opened()
    worker.signal(signal.SIGSTOP)
    try:
        eventually(lambda: "no answer from the worker" in page.text(), "the silence to show", timeout=20)
    finally:
        worker.signal(signal.SIGCONT)
    eventually(lambda: "no answer from the worker" not in page.text(), "the worker to be seen again", timeout=20)


def test_basics_are_there_without_scripts_and_are_kept_fresh(opened):
    page = opened(scripts=False)
    text = page.text()
    for line in ("state\trunning, ready", "running\t0", "shared gate\topen", "storm guard\tquiet"):
        assert line in text
    assert re.search(r"partition 2\tlag \d+, position \d+", text)
    assert "oldest unfinished" not in text  # the table that only scripts fill
    born = page.evaluate("performance.timeOrigin")
    eventually(lambda: page.evaluate("performance.timeOrigin") != born, "the page to reload itself", timeout=15)


def test_nothing_that_others_have_named_becomes_markup(opened, send):
    send({"id": EVIL, "raise": EVIL})
    for scripts in (True, False):
        page = opened(scripts=scripts)
        eventually(lambda page=page: page.text().count(EVIL) >= 2, "error and request to be shown as text", timeout=15)
        assert page.evaluate("document.querySelectorAll('img').length") == 0
        assert page.evaluate("document.title") == "gigaoffice-worker"
        assert page.complaints() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_page_fits_and_can_be_read(opened, send, width, dark):
    send({"id": "long-" + "x" * 200, "raise": "no good"})
    page = opened(width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Nothing lies off-screen inside of something that scrolls by itself.
    beyond = f"[...document.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > {width} + 1).length"
    assert page.evaluate(beyond) == 0
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 3 * 128) is dark
    assert page.evaluate(CONTRAST) >= 4.5
