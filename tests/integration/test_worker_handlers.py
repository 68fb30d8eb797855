"""Handlers of every shape, and the mistakes that they make."""

from __future__ import annotations

import textwrap

import pytest

from tests.support.forked import PATHS
from tests.support.scene import ask, check_once
from tests.support.waiting import eventually


def module(scene, code):
    """Write a handler module and return the environment that finds it."""
    (scene.directory / "shapes.py").write_text(textwrap.dedent(code))
    return {"PYTHONPATH": f"{PATHS}:{scene.directory}"}


@pytest.mark.parametrize("name", ["Counting", "make", "counting.method"])
def test_class_factory_or_method_is_made_once_called_and_closed_at_the_end(scene, name):
    scene.make()
    found = module(
        scene,
        f"""
        class Counting:
            def __init__(self):
                self.calls = 0
            def __call__(self, request):
                self.calls += 1
                return {{"calls": self.calls}}
            def method(self, request):
                return self(request)
            def close(self):
                with open({str(scene.directory / "closed")!r}, "a") as file:
                    file.write(str(self.calls))

        def make():
            return Counting()

        counting = Counting()
        """,
    )
    worker = scene.ready(WORKER_HANDLER=f"shapes:{name}", **found)
    scene.send(*[ask(f"r{n}", "k") for n in range(5)])
    responses = scene.wait_responses(5)
    assert [answer.result["calls"] for answer in responses] == [1, 2, 3, 4, 5]
    scene.wait_committed()
    assert worker.stop(20) == 0
    if "." not in name:
        assert (scene.directory / "closed").read_text() == "5"


def test_whatever_a_handler_returns_or_raises_the_worker_goes_on(scene):
    scene.make()
    found = module(
        scene,
        """
        import datetime, decimal, threading
        from gigaoffice_worker import RejectedError, TransientError

        class Bare(TransientError):
            def __init__(self):
                pass

        class Mute(Exception):
            def __str__(self):
                raise RuntimeError("says nothing")

        loop = []
        loop.append(loop)
        deep = []
        for _ in range(100_000):
            deep = [deep]

        RETURNED = {
            "none": None, "text": "text", "list": [1, 2], "number": 3.5, "nan": float("nan"), "infinite": float("inf"),
            "surrogate": "\\ud800", "bytes": b"\\xff", "set": {1}, "integer-key": {1: 2}, "tuple-key": {(1, 2): 3},
            "date": datetime.datetime(2026, 1, 1), "decimal": decimal.Decimal("0.1"), "loop": loop, "deep": deep,
            "object": object(), "class": int, "huge": 10**5000, "lock": threading.Lock(),
            "success-text": {"success": "no"},
        }
        RAISED = {
            "bare": Bare(), "mute": Mute(), "text-delay": TransientError("x", retry_after="5"),
            "negative-delay": TransientError("x", retry_after=-5),
            "nan-delay": TransientError("x", retry_after=float("nan")),
            "shared-text-delay": TransientError("x", retry_after="0", shared=False), "interrupt": KeyboardInterrupt(),
            "generator-exit": GeneratorExit(), "stop": StopIteration(), "surrogate-text": RejectedError("\\ud800"),
            "memory": MemoryError(), "wordless": RejectedError(), "recursion": RecursionError(),
            "bytes-text": RejectedError(b"\\xff"),
        }

        def handle(request):
            name = request.id
            request.payload.clear()
            request.headers["mine"] = b"1"
            if name in RAISED:
                raise RAISED[name]
            return RETURNED[name]
        """,
    )
    worker = scene.ready(
        WORKER_HANDLER="shapes:handle",
        WORKER_MAX_ATTEMPTS="2",
        WORKER_RETRY_DELAY="0.01",
        WORKER_STORM_GUARD="off",
        **found,
    )
    answered = ["none", "text", "list", "number", "success-text"]
    unwritable = ["loop", "deep", "object", "class", "lock", "surrogate"]
    either = ["nan", "infinite", "bytes", "set", "integer-key", "tuple-key", "date", "decimal", "huge"]
    raised = [
        "bare",
        "mute",
        "text-delay",
        "negative-delay",
        "nan-delay",
        "shared-text-delay",
        "interrupt",
        "generator-exit",
    ]
    raised += ["stop", "surrogate-text", "memory", "wordless", "recursion", "bytes-text"]
    everything = [*answered, *unwritable, *either, *raised]
    scene.send(*[ask(name, name) for name in everything])
    responses = scene.wait_responses(len(everything))
    check_once(responses, everything)
    scene.wait_committed()
    status = {answer.id: answer.status for answer in responses}
    assert {name for name in answered if status[name] != "completed"} == set()
    assert {name for name in [*unwritable, *raised] if status[name] != "failed"} == set()
    letters = {letter.key.decode() for letter in scene.dead_letters()}
    assert letters == {name for name in everything if status[name] == "failed"}
    assert worker.stop(20) == 0


def test_endless_delays_are_cut_and_a_worker_with_one_ends_as_asked(scene):
    scene.make()
    worker = scene.ready(WORKER_MAX_ATTEMPTS="3")
    scene.send(
        ask("for-ever", "a", do="transient", retry_after=1e300), ask("too", "b", do="transient", retry_after=10**400)
    )
    scene.wait_started("for-ever", "too")
    scene.send(ask("other", "c"))
    check_once(scene.wait_responses(1), ["other"])
    eventually(lambda: worker.metric("requests_waiting_retry") == 2, "both to wait for their retry")
    assert worker.stop(20) == 0


def test_shared_gate_of_a_foolish_length_does_not_end_the_worker(scene):
    scene.make()
    worker = scene.ready()
    scene.send(ask("for-ever", "a", do="shared", retry_after=1e300))
    scene.wait_started("for-ever")
    scene.send(ask("other", "b"))
    worker.wait_until(lambda: worker.metric("gate_closed") == 1, 20, "the gate to close")
    assert worker.ask("/livez")[0] == 200
    assert worker.stop(20) == 0
