"""Work on exports: the files themselves, on a queue of their own, and what the schedule does for them."""

from celery import shared_task

from orgs.limits import EXPORT_LONGEST

from . import making, monthly, upkeep


@shared_task(soft_time_limit=EXPORT_LONGEST.total_seconds())
def run(job_id: str) -> None:
    """Make the file of a job: of this one, or of another whose turn it is."""
    making.attempt(job_id)


@shared_task
def tend() -> None:
    """Send again what was lost, take up what dead workers left."""
    upkeep.tend()


@shared_task
def ask_for_months() -> None:
    """Ask for the files of months that are over, or have changed."""
    monthly.ask_for_months()


@shared_task
def expire() -> None:
    """Delete the files whose time is over."""
    upkeep.expire()
