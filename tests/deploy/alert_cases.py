"""What series an alert is given, and how many of it fire when."""

from dataclasses import dataclass, field

WEEK = 7 * 24 * 60  # minutes


@dataclass(frozen=True)
class Case:
    """`series` in promtool's notation, a value a minute (or `step`); `firing` by minute: how many of the alert fire then."""

    alert: str
    name: str
    series: dict[str, str]
    firing: dict[int, int]
    step: int = field(default=1)  # minutes


def _events(outcome: str, door: str = "http", instance: str = "a") -> str:
    return f'analytics_ingestion_events_total{{door="{door}",outcome="{outcome}",instance="{instance}"}}'


UP = 'up{job="analytics-web",instance="a"}'
WORKER = 'up{job="analytics-worker",instance="b"}'
LAG = 'analytics_freshness_lag_across_orgs_seconds{quantile="1.0",instance="a"}'
P95_LAG = 'analytics_freshness_lag_across_orgs_seconds{quantile="0.95",instance="a"}'
ROLLUP_LAG = 'analytics_rollup_lag_seconds{instance="a"}'
SUCCESS = 'analytics_task_last_success_timestamp_seconds{task="usage.tasks.roll_up"}'
OTHER_SUCCESS = 'analytics_task_last_success_timestamp_seconds{task="usage.tasks.maintain"}'
GAPS = 'analytics_stream_gaps{stream="s",instance="%s"}'
DRIFT = 'analytics_drift_findings_total{instance="a"}'
TASKS = 'analytics_task_runs_total{task="t",state="%s",instance="a"}'
QUEUE = 'analytics_celery_queue_messages{queue="exports",instance="%s"}'
FAILING = 'analytics_exports_failing_twice{dataset="usage",asked_by="schedule",instance="%s"}'
MISMATCHES = 'analytics_export_mismatches{instance="a"}'
BYTES = 'analytics_database_bytes{instance="a"}'
AHEAD = 'analytics_partition_days_ahead{instance="a"}'


def _org(gauge: str, org: str = "acme", model: str = "", instance: str = "a") -> str:
    return f'analytics_reliability_{gauge}{{org="{org}",model="{model}",model_name="",instance="{instance}"}}'


CALLS, ERRORS = _org("calls"), _org("error_ratio")
P95, P99 = _org("latency_p95_seconds"), _org("latency_p99_seconds")

CASES = [
    # ── the service ──
    Case("AnalyticsDown", "one process down, and back", {UP: "1+0x20", WORKER: "1+0x4 0+0x5 1+0x10"}, {6: 0, 7: 1, 11: 0}),
    Case("AnalyticsDown", "down for less than two minutes", {UP: "1+0x4 0 1+0x9"}, {5: 0, 6: 0, 8: 0}),
    Case("AnalyticsDown", "web is no target any more", {WORKER: "1+0x10"}, {1: 0, 2: 1}),
    Case("AnalyticsDown", "somebody else's process", {UP: "1+0x10", 'up{job="node"}': "0+0x10"}, {10: 0}),
    Case("AnalyticsStateUnreadable", "one part", {
        'analytics_state_read{part="tasks",instance="a"}': "1 0+0x20", 'analytics_state_read{part="exports",instance="a"}': "1+0x20",
    }, {5: 0, 6: 1}),
    Case("AnalyticsStateUnreadable", "nobody tells it", {UP: "1+0x20"}, {4: 0, 5: 1}),
    Case("AnalyticsStateUnreadable", "all is read", {'analytics_state_read{part="tasks"}': "1+0x20"}, {20: 0}),
    Case("AnalyticsStateUnreadable", "for less than five minutes", {'analytics_state_read{part="tasks"}': "1 0+0x3 1+0x9"}, {5: 0, 9: 0}),
    Case("AnalyticsFreshnessDelayed", "more than 600 s", {LAG: "0 601+0x9"}, {2: 0, 3: 1}),
    Case("AnalyticsFreshnessDelayed", "600 s are stale, not delayed", {LAG: "600+0x9"}, {9: 0}),
    Case("AnalyticsFreshnessDelayed", "two replicas tell the same", {LAG: "700+0x9", LAG.replace('"a"', '"b"'): "700+0x9"}, {9: 1}),
    Case("AnalyticsFreshnessDelayed", "absent", {P95_LAG: "900+0x9"}, {9: 0}),
    Case("AnalyticsRollupsNotRun", "batches wait", {ROLLUP_LAG: "0 121+60x9"}, {2: 0, 3: 1}),
    Case("AnalyticsRollupsNotRun", "nothing waits, and it has not succeeded", {ROLLUP_LAG: "0+0x9", SUCCESS: "0+0x9"}, {4: 0, 5: 1}),
    Case("AnalyticsRollupsNotRun", "Redis has forgotten", {ROLLUP_LAG: "121+60x9", OTHER_SUCCESS: "0+0x9"}, {3: 1}),
    Case("AnalyticsRollupsNotRun", "it runs", {ROLLUP_LAG: "120+0x9", SUCCESS: "0+60x9"}, {9: 0}),
    Case("AnalyticsRollupsNotRun", "another task is idle", {OTHER_SUCCESS: "0+0x60"}, {60: 0}),
    Case("AnalyticsIngestionLow", "79 % of last week", {
        _events("accepted"): f"0+600x{WEEK // 5} {600 * WEEK // 5}+474x40",
    }, {WEEK + 60: 0, WEEK + 100: 1}, step=5),
    Case("AnalyticsIngestionLow", "81 % of last week", {
        _events("accepted"): f"0+600x{WEEK // 5} {600 * WEEK // 5}+486x40",
    }, {WEEK + 100: 0, WEEK + 190: 0}, step=5),
    Case("AnalyticsIngestionLow", "none at all, and the door's process is gone", {
        _events("accepted", "stream"): f"0+600x{WEEK // 5} stale _x40",
    }, {WEEK + 100: 1}, step=5),
    Case("AnalyticsIngestionLow", "a restart of a process", {
        _events("accepted"): f"0+600x{WEEK // 5} 0+600x40",
    }, {WEEK + 60: 0, WEEK + 100: 0}, step=5),
    Case("AnalyticsIngestionLow", "a quiet hour of every week", {
        _events("accepted"): f"0+600x200 120000+0x30 120000+600x{WEEK // 5 - 231} {600 * (WEEK // 5 - 31)}+600x200 {600 * (WEEK // 5 + 169)}+0x30",
    }, {WEEK + 1000 + 90: 0, WEEK + 1000 + 140: 0}, step=5),
    Case("AnalyticsIngestionLow", "little traffic", {_events("accepted"): f"0+80x{WEEK // 5} {80 * WEEK // 5}+0x40"}, {WEEK + 100: 0}, step=5),
    Case("AnalyticsIngestionLow", "the first week, and what somebody replays", {
        _events("accepted"): "0+600x20 12000+0x40", _events("accepted", "trace"): "0+9999x60",
    }, {200: 0}, step=5),
    Case("AnalyticsDedupeConflicts", "more than one in a hundred", {
        _events("accepted"): "0+90x99", _events("duplicates"): "0+10x99", _events("conflicts"): "0+1.1x99",
    }, {5: 0, 40: 1}),
    Case("AnalyticsDedupeConflicts", "one in a hundred", {
        _events("accepted"): "0+90x99", _events("duplicates"): "0+10x99", _events("conflicts"): "0+1x99",
    }, {70: 0}),
    Case("AnalyticsDedupeConflicts", "few, in little traffic", {_events("accepted"): "0+1x99", _events("conflicts"): "0+0x30 5+0x60"}, {60: 0}),
    Case("AnalyticsDedupeConflicts", "a restart", {
        _events("accepted"): "0+100x50 0+100x50", _events("conflicts"): "50+0x50 0+0x50",
    }, {60: 0}),
    Case("AnalyticsDedupeConflicts", "absent", {_events("accepted"): "0+100x60"}, {60: 0}),
    Case("AnalyticsStreamGap", "the first one; it is over after an hour", {GAPS % "a": "0+0x9 1+0x90"}, {9: 0, 10: 1, 65: 1, 75: 0}),
    Case("AnalyticsStreamGap", "old ones, and a new replica", {GAPS % "a": "3+0x60", GAPS % "b": "_x30 3+0x30"}, {5: 0, 40: 0}),
    Case("AnalyticsStreamGap", "rows deleted", {GAPS % "a": "3+0x9 0+0x30"}, {20: 0}),
    Case("AnalyticsStreamGap", "noticed while web was away", {GAPS % "a": "3+0x9 stale _x5 4+0x30"}, {20: 1}),
    Case("AnalyticsQuarantineGrowing", "more than 100 in an hour", {_events("quarantined", "stream"): "0+0x9 0+10x60"}, {15: 0, 40: 1}),
    Case("AnalyticsQuarantineGrowing", "100 in two hours", {_events("quarantined", "stream"): "0+0.8x120"}, {120: 0}),
    Case("AnalyticsQuarantineGrowing", "replayed in vain", {_events("quarantined", "quarantine"): "0+50x60"}, {60: 0}),
    Case("AnalyticsQuarantineGrowing", "a restart", {_events("quarantined", "stream"): "5000+0x30 0+0x30"}, {60: 0}),
    Case("AnalyticsDrift", "found by night", {DRIFT: "0+0x9 2+0x90"}, {9: 0, 11: 1, 90: 1}),
    Case("AnalyticsDrift", "none, and a restart", {DRIFT: "2+0x60 0+0x60"}, {59: 0, 100: 0}),
    Case("AnalyticsTasksFailing", "it fails each time", {TASKS % "failure": "0+1x60"}, {3: 0, 40: 1}),
    Case("AnalyticsTasksFailing", "its process dies", {TASKS % "lost": "0+1x60"}, {40: 1}),
    Case("AnalyticsTasksFailing", "once", {TASKS % "failure": "0+0x9 1+0x50", TASKS % "success": "0+30x60"}, {40: 0}),
    Case("AnalyticsTasksFailing", "a restart", {TASKS % "failure": "90+0x30 0+0x30"}, {50: 0}),
    Case("AnalyticsQueueBacklog", "nobody takes them", {QUEUE % "a": "0 101+0x20", QUEUE % "b": "0 101+0x20"}, {10: 0, 11: 1}),
    Case("AnalyticsQueueBacklog", "a hundred", {QUEUE % "a": "100+0x30"}, {30: 0}),
    Case("AnalyticsQueueBacklog", "taken in time", {QUEUE % "a": "0 900-100x8 0+0x20"}, {9: 0, 20: 0}),
    # ── exports ──
    Case("AnalyticsExportsFailing", "twice running, told by two", {FAILING % "a": "0 1+0x20", FAILING % "b": "0 1+0x20"}, {5: 0, 6: 1}),
    Case("AnalyticsExportsFailing", "the third attempt came soon", {FAILING % "a": "0 1+0x3 0+0x9"}, {8: 0}),
    Case("AnalyticsExportsFailing", "absent", {QUEUE % "a": "0+0x20"}, {20: 0}),
    Case("AnalyticsExportMismatch", "a new one", {MISMATCHES: "0+0x9 1+0x90"}, {9: 0, 10: 1}),
    Case("AnalyticsExportMismatch", "those of last week", {MISMATCHES: "2+0x30 1+0x30"}, {20: 0, 50: 0}),
    # ── storage ──
    Case("AnalyticsStorageGrowth", "three times as fast", {BYTES: "0+1e8x192 19.2e9+4e8x30"}, {11_520 - 60: 0, 11_520 + 1_500: 1}, step=60),
    Case("AnalyticsStorageGrowth", "twice as fast", {BYTES: "0+2e8x192 38.4e9+4e8x30"}, {11_520 + 1_500: 0}, step=60),
    Case("AnalyticsStorageGrowth", "little in bytes", {BYTES: "0+1e6x192 19.2e7+1e8x30"}, {11_520 + 1_500: 0}, step=60),
    Case("AnalyticsStorageGrowth", "the first days", {BYTES: "0+1e9x100"}, {6_000: 0}, step=60),
    Case("AnalyticsPartitionsShort", "no longer made", {AHEAD: "2+0x9 1+0x500"}, {60: 0, 429: 0, 430: 1}),
    Case("AnalyticsPartitionsShort", "after midnight, until the next run", {AHEAD: "3+0x9 2+0x360 3+0x9"}, {360: 0}),
    Case("AnalyticsPartitionsShort", "a new installation, before the schedule's first run", {AHEAD: "0+0x361 3+0x90"}, {361: 0, 440: 0}),
    Case("AnalyticsPartitionsShort", "absent: a hypertable makes its own", {BYTES: "1+0x90"}, {90: 0}),
    # ── the five conditions ──
    Case("AnalyticsErrorRate", "more than 5 %", {CALLS: "100+0x9", ERRORS: "0 0.051+0x9"}, {1: 0, 2: 1}),
    Case("AnalyticsErrorRate", "5 %", {CALLS: "100+0x9", ERRORS: "0.05+0x9"}, {9: 0}),
    Case("AnalyticsErrorRate", "19 calls", {CALLS: "19+0x9", ERRORS: "1+0x9"}, {9: 0}),
    Case("AnalyticsErrorRate", "one model alone", {_org("calls", model="m"): "100+0x9", _org("error_ratio", model="m"): "1+0x9"}, {9: 0}),
    Case("AnalyticsErrorRate", "of each org", {
        CALLS: "100+0x9", ERRORS: "1+0x9", _org("calls", "globex"): "100+0x9", _org("error_ratio", "globex"): "1+0x9",
        _org("calls", "initech"): "100+0x9", _org("error_ratio", "initech"): "0+0x9",
    }, {9: 2}),
    Case("AnalyticsLatencyP95", "above 2 s", {CALLS: "100+0x20", P95: "1 2.01+0x20"}, {5: 0, 6: 1}),
    Case("AnalyticsLatencyP95", "2 s", {CALLS: "100+0x20", P95: "2+0x20"}, {20: 0}),
    Case("AnalyticsLatencyP95", "for less than ten minutes", {CALLS: "100+0x20", P95: "1 3+0x3 1+0x9"}, {6: 0}),
    Case("AnalyticsLatencyP95", "19 calls", {CALLS: "19+0x20", P95: "9+0x20"}, {20: 0}),
    Case("AnalyticsLatencyP99", "above 5 s", {CALLS: "100+0x9", P99: "1 5.01+0x9"}, {1: 0, 2: 1}),
    Case("AnalyticsLatencyP99", "5 s", {CALLS: "100+0x9", P99: "5+0x9"}, {9: 0}),
    Case("AnalyticsErrorRateRose", "from 1 % to 4 %", {CALLS: "2000+0x60", ERRORS: "0.01+0x20 0.04+0x9 0.01+0x30"}, {20: 0, 22: 1, 32: 0}),
    Case("AnalyticsErrorRateRose", "from none", {CALLS: "1000+0x60", ERRORS: "0+0x20 0.04+0x9"}, {22: 1}),
    Case("AnalyticsErrorRateRose", "less than three times", {CALLS: "9000+0x60", ERRORS: "0.01+0x20 0.029+0x9"}, {25: 0}),
    Case("AnalyticsErrorRateRose", "as chance has it", {CALLS: "60+0x60", ERRORS: "0+0x20 0.1+0x9"}, {25: 0}),
    Case("AnalyticsErrorRateRose", "no calls 15 minutes before", {CALLS: "_x20 100+0x20", ERRORS: "_x20 1+0x20"}, {25: 0, 30: 0}),
    Case("AnalyticsLatencyP95Rose", "twice", {CALLS: "100+0x60", P95: "1+0x20 2+0x20"}, {22: 0, 23: 1, 40: 0}),
    Case("AnalyticsLatencyP95Rose", "less than twice", {CALLS: "100+0x60", P95: "1+0x20 1.9+0x20"}, {30: 0}),
    Case("AnalyticsLatencyP95Rose", "99 calls", {CALLS: "99+0x60", P95: "1+0x20 9+0x20"}, {30: 0}),
]  # fmt: skip
