"""The query string of the series endpoints, read and checked."""

import uuid
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request

from ingestion.models import Status
from orgs.api import unknown_parameters
from orgs.models import Org

from .models import REST
from .series import PART_NAMES, Group, Key, Question, Unanswerable, zone_of
from .windows import LAST_YEAR, UTC_ZONE, Granularity, Window, utc

Choice = TypeVar("Choice", bound=str)


class Wrong(ValueError):
    """One parameter is not what it should be."""


def moment(text: str) -> datetime:
    """A time with an offset, in UTC. Raises `Wrong`."""
    try:
        moment = msgspec.convert(text, datetime)
    except msgspec.ValidationError as error:
        raise Wrong("must be an RFC 3339 date-time with an offset, such as 2026-01-31T00:00:00Z") from error
    if moment.tzinfo is None:
        raise Wrong("must have an offset, such as Z")
    try:
        moment = utc(moment)
    except OverflowError as error:
        raise Wrong("lies outside of the years 1 to 9999 in UTC") from error
    if moment.year > LAST_YEAR:
        raise Wrong("lies too far ahead")
    return moment


def one_of(choices: Collection[Choice]) -> Callable[[str], Choice]:
    """A reader of one of some words."""

    def read(text: str) -> Choice:
        for choice in choices:
            if choice == text:
                return choice
        *most, last = choices
        raise Wrong(f"must be {', '.join(most)} or {last}")

    return read


def _uuid(text: str) -> uuid.UUID:
    try:
        return msgspec.convert(text, uuid.UUID)
    except msgspec.ValidationError as error:
        raise Wrong("must be a UUID") from error


def _in_org_zone(text: str) -> bool:
    if text not in ("UTC", "org"):
        raise Wrong("must be UTC or org")
    return text == "org"


_READERS: dict[str, Callable[[str], Any]] = {
    "start": moment,
    "end": moment,
    "granularity": one_of(Granularity),
    "modelId": _uuid,
    "timeZone": _in_org_zone,
}
_REQUIRED = ("start", "end")


def read_parameters(
    request: Request, *, only: Collection[str] = tuple(_READERS), also: Mapping[str, Callable[[str], Any]] | None = None
) -> dict[str, Any]:
    """The parameters that were given, converted; one error per parameter that is wrong, missing or not known.

    `also` are an endpoint's own, each with what converts it or raises `Wrong`.
    """
    values: dict[str, Any] = {}
    known = (*only, *(also or ()))
    errors = unknown_parameters(request, known)
    readers = _READERS | dict(also or {})
    for name in known:
        given = request.query_params.getlist(name)
        if not given or (given == [""] and name in _REQUIRED):
            if name in _REQUIRED:
                errors[name] = "is required"
            continue
        try:
            if len(given) > 1:
                raise Wrong("is given more than once")
            values[name] = readers[name](given[0])
        except Wrong as error:
            errors[name] = str(error)
    if not errors and "start" in values and values["start"] >= values["end"]:
        errors["end"] = "must be after start"
    if errors:
        raise ValidationError(errors)
    return values


def read_question(
    request: Request, org: Org, groups: Collection[Group], also: Mapping[str, Callable[[str], Any]] | None = None
) -> tuple[Question, dict[str, Any]]:
    """What a series endpoint is asked, and its own parameters. Raises `ValidationError`."""
    values = read_parameters(request, also={"groupBy": one_of(groups), **(also or {})})
    question = Question(
        org_id=org.pk,
        window=Window(values["start"], values["end"]),
        granularity=values.get("granularity", Granularity.DAY),
        model_id=values.get("modelId"),
        zone=zone_of(org) if values.get("timeZone") else UTC_ZONE,
        group=values.get("groupBy", Group.MODEL),
    )
    return question, values


def part_of(key: Key, group: Group) -> dict[str, Any]:
    """What figures are of. Null where no client or error code was told, and where it is the rest together."""
    name = PART_NAMES[group]
    if group is Group.STATUS:
        return {name: Status(key).label}
    if group is Group.MODEL:
        return {name: key}
    return {name: None if key in ("", REST) else key, "isRest": key == REST}


def refused(error: Unanswerable) -> ValidationError:
    return ValidationError({error.field: str(error)})
