from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class AnalyticsSiteConfig(AppConfig):
    name = "analytics_site"

    def ready(self) -> None:
        from . import checks  # noqa: F401  registers the system checks


class AnalyticsAdminConfig(AdminConfig):
    default_site = "analytics_site.admin.AnalyticsAdminSite"
