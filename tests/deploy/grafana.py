"""The dashboards of `deploy/grafana`, and their queries as Grafana would send them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from . import stack

FOLDER = stack.ROOT / "deploy/grafana"
DASHBOARDS: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text()) for file in sorted((FOLDER / "dashboards").glob("*.json"))
}
SQL, PROMQL = "rawSql", "expr"
_TYPES = {"grafana-postgresql-datasource": SQL, "prometheus": PROMQL}


@dataclass(frozen=True)
class Query:
    panel: str
    kind: str
    text: str
    format: str = ""


def queries(dashboard: Mapping[str, Any], kind: str) -> Iterator[Query]:
    """Of the panels of a dashboard, and of its variables."""
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            if _TYPES[target["datasource"]["type"]] == kind:
                yield Query(panel["title"], kind, target[kind], target.get("format", ""))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query" and _TYPES[variable["datasource"]["type"]] == kind:
            text = variable["definition"] if kind == PROMQL else variable["query"]
            yield Query(f"variable {variable['name']}", kind, text)


def variables(dashboard: Mapping[str, Any]) -> dict[str, str]:
    """What each variable is where it is left at All, or at its text: Grafana puts `allValue` in as it stands."""
    return {
        variable["name"]: variable.get("allValue") or str(variable["current"].get("value", ""))
        for variable in dashboard["templating"]["list"]
    }


def expand(text: str, start: datetime, end: datetime, values: Mapping[str, str | Sequence[str]]) -> str:
    """A query as Grafana sends it, as far as these dashboards use its macros and variables; any other is refused.

    PostgreSQL: `$__timeFrom()`, `$__timeTo()` are moments in quotes, `$__unixEpochFrom()`, `$__unixEpochTo()` whole seconds,
    `${name:sqlstring}` the chosen values in quotes, separated by commas. Prometheus: `$__rate_interval` is at least four
    scrapes, `$name` in a matcher the chosen values as a regular expression.
    """

    def moment(time: datetime) -> str:
        return f"'{time.astimezone(UTC).isoformat(timespec='milliseconds').replace('+00:00', 'Z')}'"

    def quoted(found: re.Match[str]) -> str:
        value = values[found[1]]
        return value if isinstance(value, str) else ",".join(f"'{one}'" for one in value)

    for macro, expanded in {
        "$__timeFrom()": moment(start),
        "$__timeTo()": moment(end),
        "$__unixEpochFrom()": str(int(start.timestamp())),
        "$__unixEpochTo()": str(int(end.timestamp())),
        "$__rate_interval": "1m",
    }.items():
        text = text.replace(macro, expanded)
    text = re.sub(r"\$\{(\w+):sqlstring\}", quoted, text)
    text = re.sub(r'(?<=")\$(\w+)(?=")', lambda found: str(values[found[1]]), text)
    if "$" in text:
        raise ValueError(f"not known here: {text[text.index('$') :][:40]}")
    return text
