"""The form that asks for a file, as a person fills it in."""

import uuid
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from django import forms

from ingestion.models import Status
from orgs.limits import DEFAULT_INCIDENT_ROWS, MAX_EXPORT_DAYS, MAX_INCIDENT_ROWS
from orgs.models import Org
from usage import filters
from usage.series import zone_of
from usage.windows import shift_days

from .datasets.usage import Grain
from .jobs import Wanted
from .models import Kind
from .writers import Format

RANGES = {name: filters.RANGES[name] for name in ("last_month", "month", "30d", "7d", "24h", "custom")} | {
    "month": "Month to date"
}
DATASETS = {Kind.USAGE: "Usage by model", Kind.INCIDENT_EVENTS: "Every call"}
GRAINS = {Grain.HOURLY: "By hour", Grain.DAILY: "By day", Grain.MONTHLY: "By month"}
OUTCOMES = {
    Status.SUCCESS: "Success",
    Status.ERROR: "Error",
    Status.TIMEOUT: "Timed out",
    Status.THROTTLED: "Throttled",
}
FORMATS = {
    Format.XLSX: "Excel (XLSX)",
    Format.CSV: "CSV",
    Format.CSV_GZ: "CSV, compressed",
    Format.PARQUET: "Parquet",
}
_DEFAULT_RANGE = "last_month"
_GRAINS_OF_PAGES = {"hour": Grain.HOURLY, "day": Grain.DAILY}  # what the pages of figures call them
_EDGES = {"start": "The start", "end": "The end"}
_LIMIT = f"The number of calls must lie between 1 and {MAX_INCIDENT_ROWS:,}."


class ExportForm(forms.Form):
    """`wanted` is what a valid form wants. Days and months are those of the org's zone.

    `link` is the query string of a page of figures, whose range, steps and model the form begins with; what can't be read in
    it is left out.
    """

    dataset = forms.ChoiceField(label="Contents", choices=list(DATASETS.items()), initial=Kind.USAGE)
    range = forms.ChoiceField(label="Range", choices=list(RANGES.items()))
    start = forms.CharField(label="First day", required=False, widget=forms.TextInput(attrs={"type": "date"}))
    end = forms.CharField(label="Last day", required=False, widget=forms.TextInput(attrs={"type": "date"}))
    granularity = forms.ChoiceField(
        label="Steps", choices=[(grain.value, label) for grain, label in GRAINS.items()], initial=Grain.DAILY
    )
    models = forms.MultipleChoiceField(label="Models", required=False, widget=forms.CheckboxSelectMultiple)
    status = forms.ChoiceField(
        label="Outcome",
        required=False,
        choices=[("", "Any outcome"), *((status.label, label) for status, label in OUTCOMES.items())],
    )
    limit = forms.IntegerField(
        label="Calls at most",
        min_value=1,
        max_value=MAX_INCIDENT_ROWS,
        required=False,
        initial=DEFAULT_INCIDENT_ROWS,
        error_messages=dict.fromkeys(("invalid", "min_value", "max_value"), _LIMIT),
    )
    format = forms.ChoiceField(label="Format", choices=[])

    def __init__(
        self,
        org: Org,
        models: list[tuple[uuid.UUID, str]],
        now: datetime,
        data: Mapping[str, Any] | None = None,
        link: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data, auto_id="export-%s")
        self.org, self.now, self.zone = org, now, zone_of(org)
        self.fields["models"].choices = [(str(pk), name) for pk, name in models]  # type: ignore[attr-defined]
        self.fields["format"].choices = [  # type: ignore[attr-defined]
            (kind.value, label) for kind, label in FORMATS.items() if not kind.missing
        ]
        self.initial = self._begin_with(link or {})
        for name, label in (("start", "From"), ("end", "Until")):
            if "T" in str((self.data if self.is_bound else self.initial).get(name, "")):  # a time of a day
                self.fields[name].label = label
                self.fields[name].widget.input_type = "datetime-local"

    def _begin_with(self, link: Mapping[str, str]) -> dict[str, Any]:
        asked = filters.read(link, self.zone, self.now)
        is_told = {"range", "start", "end"} & set(link) and not {"range", "start", "end"} & set(asked.errors)
        if not is_told:
            asked = filters.read({"range": _DEFAULT_RANGE}, self.zone, self.now)
        model = link.get("model", "")
        return {
            "range": asked.range,
            "start": _edge(asked.first_day, asked.window.start, self.zone),
            "end": _edge(asked.last_day, asked.window.end, self.zone),
            "granularity": _GRAINS_OF_PAGES.get(link.get("granularity", ""), Grain.DAILY),
            "models": [pk for pk, _ in self.fields["models"].choices if pk == model],  # type: ignore[attr-defined]
        }

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if "range" in cleaned:
            asked = filters.read({name: cleaned.get(name, "") for name in ("range", *_EDGES)}, self.zone, self.now)
            for name, message in asked.errors.items():
                self.refuse(name, message)
            if not asked.errors:
                cleaned["window"] = asked.window
                if asked.window.end > shift_days(asked.window.start, MAX_EXPORT_DAYS, self.zone):
                    self.add_error(
                        "range",
                        f"A file has {MAX_EXPORT_DAYS} days at most: choose a shorter range, or ask for several.",
                    )
        if cleaned.get("dataset") == Kind.INCIDENT_EVENTS:
            if len(cleaned.get("models", [])) > 1:
                self.add_error("models", "A file of every call has one model, or all of them: choose one, or none.")
        elif "limit" in self.errors:  # it is not shown
            del self.errors["limit"]
        return cleaned

    @property
    def wanted(self) -> Wanted:
        asked = self.cleaned_data
        is_calls = asked["dataset"] == Kind.INCIDENT_EVENTS
        status = Status.called(asked["status"]) if is_calls else None
        return Wanted(
            org=self.org,
            window=asked["window"],
            dataset=Kind(asked["dataset"]),
            format=Format(asked["format"]),
            grain=Grain(asked["granularity"]),
            zone=self.zone.key,
            model_ids=frozenset(map(uuid.UUID, asked["models"])) or None,
            call_status=status,
            row_limit=(asked["limit"] or DEFAULT_INCIDENT_ROWS) if is_calls else None,
        )

    def refuse(self, name: str, message: str) -> None:
        """Say what is wrong, of the field that changes it. The edges of a range that has a name are not shown."""
        field: str | None = name if name in self.fields else None
        if name in _EDGES and self.cleaned_data.get("range") != "custom":
            field = "range"
        label = _EDGES.get(name, f"The {name}")
        self.add_error(field, f"{label} {message}.")


def _edge(text: str, moment: datetime, zone: ZoneInfo) -> str:
    """An edge of a range as an input of days, or of times, takes it."""
    if "T" in text or " " in text:
        return f"{moment.astimezone(zone):%Y-%m-%dT%H:%M}"
    return date.fromisoformat(text).isoformat()
