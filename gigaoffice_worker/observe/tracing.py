"""Whether spans are drawn: off unless the standard variables of OpenTelemetry switch them on.

Nothing of OpenTelemetry is imported while they are off, and nothing about them ever ends the worker.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

if TYPE_CHECKING:
    from gigaoffice_worker.observe.spans import Spans

log = structlog.get_logger(__name__)

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"
_NEEDED: Final = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


class Switch(NamedTuple):
    """Whether spans are asked for; `trouble` says why there are none all the same, and `mend` what to do."""

    on: bool
    trouble: str = ""
    mend: str = ""


def switch(environ: Mapping[str, str]) -> Switch:
    """Read the standard variables: an exporter that is named, or an endpoint, switches spans on."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    asked = bool(exporter) or any(environ.get(name) for name in _ENDPOINTS)
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none" or not asked:
        return Switch(on=False)
    if exporter not in {"", "otlp"}:
        return Switch(True, f"OTEL_TRACES_EXPORTER={exporter!r} is not supported", "Set it to otlp or none.")
    protocol = next((environ[name].strip() for name in _PROTOCOLS if environ.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        mend = f"Set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL={_PROTOCOL}, and the endpoint that takes it (port 4318)."
        return Switch(True, f"OTLP over {protocol} is not supported", mend)
    if not all(_is_installed(name) for name in _NEEDED):
        return Switch(True, "OpenTelemetry is not installed", "pip install 'gigaoffice-worker[otel]'")
    return Switch(on=True)


def spans(environ: Mapping[str, str], *, group: str, client_id: str, version: str) -> Spans | None:
    """Return what draws spans and sends them; None, with a warning, where that is asked for and cannot be."""
    found = switch(environ)
    if found.on and not found.trouble:
        from gigaoffice_worker.observe import spans as drawing  # noqa: PLC0415  # costs time and memory

        try:
            return drawing.Spans(drawing.exporting(environ, version), group=group, client_id=client_id, version=version)
        except Exception as error:  # noqa: BLE001  # whatever it is, requests are answered without spans, too
            found = Switch(True, f"{type(error).__name__}: {error}", "See to the OTEL_ variables.")
    if found.trouble:
        log.warning("Spans are not sent", error=found.trouble, hint=found.mend)
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
