"""The form that asks for a file, as a person fills it in."""

import uuid
from datetime import datetime
from typing import Any

from django import forms

from ingestion.models import Status
from orgs.limits import DEFAULT_INCIDENT_ROWS, MAX_INCIDENT_ROWS
from orgs.models import Org
from usage import filters
from usage.series import zone_of

from .datasets.usage import Grain
from .jobs import Wanted
from .models import Kind
from .writers import Format

RANGES = {name: filters.RANGES[name] for name in ("last_month", "month", "30d", "7d", "24h", "custom")} | {
    "month": "Month to date"
}
DATASETS = {Kind.USAGE: "Usage by model", Kind.INCIDENT_EVENTS: "Every call"}
FORMATS = {
    Format.XLSX: "Excel (XLSX)",
    Format.CSV: "CSV",
    Format.CSV_GZ: "CSV, compressed",
    Format.PARQUET: "Parquet",
}
_FILTERS = {"start": "start", "end": "end", "range": "range"}  # what `filters` finds wrong, by field


class ExportForm(forms.Form):
    """`wanted` is what a valid form wants. Days and months are those of the org's zone."""

    dataset = forms.ChoiceField(label="What", choices=list(DATASETS.items()), initial=Kind.USAGE)
    range = forms.ChoiceField(label="Range", choices=list(RANGES.items()), initial="last_month")
    start = forms.CharField(label="First day", required=False, widget=forms.DateInput(attrs={"type": "date"}))
    end = forms.CharField(label="Last day", required=False, widget=forms.DateInput(attrs={"type": "date"}))
    granularity = forms.ChoiceField(
        label="Steps",
        choices=[(Grain.HOURLY.value, "By hour"), (Grain.DAILY.value, "By day"), (Grain.MONTHLY.value, "By month")],
        initial=Grain.DAILY,
    )
    models = forms.MultipleChoiceField(label="Models", required=False, widget=forms.CheckboxSelectMultiple)
    status = forms.ChoiceField(
        label="Calls that ended", required=False, choices=[("", "In any way"), *((s, s) for s in Status.labels)]
    )
    limit = forms.IntegerField(
        label="Calls at most", min_value=1, max_value=MAX_INCIDENT_ROWS, required=False, initial=DEFAULT_INCIDENT_ROWS
    )
    format = forms.ChoiceField(label="Format", choices=[])

    def __init__(self, org: Org, models: list[tuple[uuid.UUID, str]], now: datetime, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.org, self.now, self.zone = org, now, zone_of(org)
        self.auto_id = "export-%s"
        self.fields["models"].choices = [(str(pk), name) for pk, name in models]  # type: ignore[attr-defined]
        self.fields["format"].choices = [  # type: ignore[attr-defined]
            (kind.value, label) for kind, label in FORMATS.items() if not kind.missing
        ]

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if "range" in cleaned:
            asked = filters.read({name: cleaned.get(name, "") for name in _FILTERS}, self.zone, self.now)
            for name, message in asked.errors.items():
                label = {"start": "The first day", "end": "The last day"}.get(name, "The range")
                self.add_error(name if name in self.fields else None, f"{label} {message}.")
            if not asked.errors:
                cleaned["window"] = asked.window
        return cleaned

    @property
    def wanted(self) -> Wanted:
        asked = self.cleaned_data
        is_calls = asked["dataset"] == Kind.INCIDENT_EVENTS
        status = next((known for known in Status if known.label == asked["status"]), None) if is_calls else None
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

    def refuse(self, field: str, message: str) -> None:
        """Say what `jobs` found wrong, beside the field that changes it."""
        label = {"start": "The range", "end": "The range"}.get(field, field.capitalize())
        self.add_error(
            {"start": "range", "end": "range"}.get(field, field if field in self.fields else None),
            f"{label} {message}.".replace("..", "."),
        )
