"""The metrics of a manager, by name, with their labels: what dashboards and alerts may speak of."""

from collections.abc import Mapping
from typing import Final

METRICS: Final[Mapping[str, frozenset[str]]] = {
    "jido_sessions": frozenset({"status"}),
    "jido_transitions_total": frozenset({"from", "to", "reason"}),
    "jido_command_seconds": frozenset({"verb"}),
    "jido_command_errors_total": frozenset({"verb", "code"}),
    "jido_events_published_total": frozenset(),
    "jido_events_unpublished": frozenset(),
    "jido_lease_age_seconds": frozenset(),
    "jido_takeovers_total": frozenset(),
    "jido_reconnects_total": frozenset(),
    "jido_manager_info": frozenset({"manager_id", "version"}),
}
HISTOGRAMS: Final = frozenset({"jido_command_seconds"})
# Prometheus puts them on everything that it asks for, or on a histogram's buckets.
ADDED: Final = frozenset({"job", "instance", "le"})
