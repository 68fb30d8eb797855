"""Results with numpy's scalars in them, which most numbers of a data frame are."""

from __future__ import annotations

import json

import pytest

from gigaoffice_worker.core.records import Failure
from gigaoffice_worker.core.results import UnusableResultError, encode_result, failure_told

np = pytest.importorskip("numpy", reason="numpy is not installed")


@pytest.mark.parametrize(
    "scalar, written",
    [
        (np.float64(1.5), 1.5),
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.longdouble(2.5), 2.5),
        (np.int64(-3), -3),
        (np.uint8(200), 200),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
        (np.bytes_(b"\xff"), "/w=="),
        (np.datetime64("2026-03-04"), "2026-03-04"),
        (np.float64("nan"), None),
        (np.array([1, 2]).sum(), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_numpys_scalars_are_numbers(scalar: object, written: object) -> None:
    assert json.loads(encode_result({"value": [scalar]})) == {"value": [written]}
    assert json.loads(encode_result(np.int32(4))) == 4
    assert json.loads(encode_result({np.int32(4): 1})) == {"4": 1}


@pytest.mark.parametrize("result, kind", [(np.array([1]), "numpy.ndarray"), (np.complex64(1), "numpy.complex64")])
def test_what_is_no_number_of_json_is_unusable(result: object, kind: str) -> None:
    with pytest.raises(UnusableResultError) as caught:
        encode_result({"value": result})
    assert (caught.value.kind, caught.value.place) == (kind, "result['value']")


def test_a_result_may_fail_with_numpys_false() -> None:
    assert failure_told(encode_result({"success": np.bool_(False), "message": "no"})) == Failure("HandlerFailure", "no")
