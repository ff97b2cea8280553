import gc

from django.apps import AppConfig, apps
from django.contrib.admin.apps import AdminConfig
from django.db.models.signals import post_migrate


class AnalyticsSiteConfig(AppConfig):
    name = "analytics_site"

    def ready(self) -> None:
        # celery: tasks that are sent find their broker. checks, logs and task_metrics register themselves.
        from . import celery, checks, logs, schedule, task_metrics  # noqa: F401

        # What is loaded by now stays: collections need not look at it again. A batch makes objects by the ten thousand,
        # and keeps them until it is written; looking for cycles among them every 700 took a tenth of its time.
        gc.freeze()
        gc.set_threshold(50_000, 10, 10)
        # After the tables of django-celery-beat are there.
        post_migrate.connect(schedule.install, sender=apps.get_app_config("django_celery_beat"))


class AnalyticsAdminConfig(AdminConfig):
    default_site = "analytics_site.admin.AnalyticsAdminSite"
