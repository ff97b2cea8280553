"""What routes name by an id: things of each org, and one row of each model of the admin."""

import re
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.contrib.auth.models import Group
from django.db.models import Model
from django.utils import timezone
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)

from exports.delivery.folder import FolderStore
from exports.jobs import Wanted
from exports.models import ExportBucket, ExportJob, Kind, State
from ingestion.models import Batch, Conflict, Door, QuarantinedMessage, StreamGap, StreamReader
from orgs.models import ApiKey, AuditRecord, Invitation, Membership, Org, Role, User
from reliability.detection import Measure
from reliability.models import Incident
from usage.models import Freshness
from usage.windows import Window

from ..factories import MODEL, at, make_model
from .callers import People, Place
from .route_table import Line

FILE = "file.csv"
_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")


class Things:
    """Of the two orgs that there are. Where a route names something of an org that there is not, of none."""

    def __init__(self, people: People, folder: Path) -> None:
        self.people = people
        self.inviter = User.objects.create_user("inviter@example.com", None)
        self.invitation, self.invited = Invitation.issue(people.orgs["own"], "i@example.com", "viewer", self.inviter)
        (folder / FILE).write_bytes(b"a,b\n")
        link = FolderStore(folder).url(FILE, FILE, timedelta(hours=1))
        self.everybodys = {"token": self.invited, "file": link.rsplit("/", 1)[1], "url": "none", "app_label": "orgs"}
        self.of_orgs = {place: self._of(org) for place, org in people.orgs.items()}
        self.open_job = Wanted(org=None, window=Window(at(0), at(1)), dataset=Kind.ORG_SUMMARY).job("somebody")
        self.open_job.save()
        self.rows = {row._meta.label_lower: row for row in self._rows(people.orgs["own"])}

    def address(self, line: Line, place: Place, things_of: Place | None = None) -> str:
        known = self.everybodys | self.of_orgs.get(things_of or place, {})
        if line.kind == "admin":
            known |= self._of_admin(line)
        elif line.route.startswith("exports/files"):
            known["token"] = known["file"]
        org = self.people.orgs.get(place)
        known |= {"org_id": str(self.people.org_id(place)), "slug": org.slug if org else "no-such-org"}

        def fill(match: re.Match[str]) -> str:
            name = match.group(1)
            return known.get(name) or (str(uuid.UUID(int=4)) if "uuid" in match.group() else "999999999")

        return "/" + _PARAMETER.sub(fill, line.route)

    def _of(self, org: Org) -> dict[str, str]:
        job = Wanted(org=org, window=Window(at(0), at(1))).job("somebody")
        job.status, job.expires_at, job.key = State.SUCCEEDED, timezone.now() + timedelta(days=1), FILE
        job.save()
        member = Membership.objects.create(
            org=org, role=Role.VIEWER, user=User.objects.create_user(f"{org.slug}@example.com", None)
        )
        invitation, _ = Invitation.issue(org, f"invited@{org.slug}.example", Role.VIEWER, self.inviter)
        key, _ = ApiKey.issue(org=org, name="of the org", scopes=["admin"])
        return {
            "job_id": str(job.pk),
            "membership_id": str(member.pk),
            "invitation_id": str(invitation.pk),
            "key_id": str(key.pk),
        }

    def _of_admin(self, line: Line) -> dict[str, str]:
        """A row of the model whose page it is."""
        label = ".".join(line.route.split("/")[1:3])
        row = self.rows.get(label)
        pk = str(row.pk) if row else ""
        job = str(self.rows["exports.exportjob"].pk)
        return {"object_id": pk, "id": pk, "pk": job if "exportjob" in label else pk, "grain": "hourly"}

    def _rows(self, org: Org) -> list[Model]:
        now = timezone.now()
        interval = IntervalSchedule.objects.create(every=1, period="days")
        crontab = CrontabSchedule.objects.create(minute="7", hour="3")
        model = make_model()
        batch = Batch.objects.create(door=Door.HTTP, received=1, started_at=now, completed_at=now)
        known = {"batch": batch, "received_at": now}
        conflict = known | {"org_id": org.pk, "event_id": uuid.uuid4(), "first_occurred_at": now, "payload": {}}
        unreadable = known | {"reason": "unreadable", "detail": "is not valid JSON", "payload": b"{"}
        span = {"started_at": now, "ended_at": now}
        figures = {"observed": 1, "normal": 1, "score": 9, "invocations": 1, "failures": 1}
        made: list[tuple[type[Model], dict[str, Any]]] = [
            (Group, {"name": "a group"}),
            (ClockedSchedule, {"clocked_time": now}),
            (SolarSchedule, {"event": "sunset", "latitude": 0, "longitude": 0}),
            (PeriodicTask, {"name": "a task", "task": "usage.tasks.roll_up", "interval": interval, "enabled": True}),
            (ExportBucket, {"org": org, "bucket": "a-bucket"}),
            (Conflict, conflict),
            (QuarantinedMessage, unreadable),
            (StreamGap, {"stream": "s", "first_missing": 1, "last_missing": 2}),
            (StreamReader, {"stream": "s", "caught_up_at": now}),
            (AuditRecord, {"actor": "user:somebody", "action": "sign-in"}),
            (Incident, {"org": org, "measure": Measure.P95, **span, **figures}),
            (Freshness, {"org": org, "model_id": MODEL, "last_event_at": now, "last_rollup_at": now}),
        ]
        rows = [kind._default_manager.create(**fields) for kind, fields in made]
        of_org = self.of_orgs["own"]
        return [
            *rows,
            interval,
            crontab,
            model,
            batch,
            org,
            self.inviter,
            Membership.objects.get(pk=of_org["membership_id"]),
            ApiKey.objects.get(pk=of_org["key_id"]),
            ExportJob.objects.get(pk=of_org["job_id"]),
            self.invitation,
        ]
