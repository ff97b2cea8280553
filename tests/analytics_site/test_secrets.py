"""What is committed holds no secret."""

import json
import subprocess

import pytest
from detect_secrets import SecretsCollection
from detect_secrets.settings import default_settings
from django.conf import settings


def test_nothing_that_is_committed_looks_like_a_secret_but_what_is_known_not_to_be_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`.secrets.baseline` lists what only looks like one: passwords of examples and of tests. A line more there is looked at
    twice; `detect-secrets scan` writes the list."""
    monkeypatch.chdir(settings.BASE_DIR)
    listed = subprocess.run(
        ["git", "ls-files", ":!requirements", ":!*.png", ":!.secrets.baseline"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = SecretsCollection()
    with default_settings():
        for file in listed.stdout.split():
            found.scan_file(file)
    results = json.loads((settings.BASE_DIR / ".secrets.baseline").read_text())["results"]
    known = {(file, secret["hashed_secret"]) for file, secrets in results.items() for secret in secrets}
    assert {file for file, secret in found if (file, secret.secret_hash) not in known} == set()
