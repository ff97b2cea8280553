from django.contrib import admin


class AnalyticsAdminSite(admin.AdminSite):
    pass
