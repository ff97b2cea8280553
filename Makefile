# What the README tells people to run. Without DATABASE_URL and REDIS_URL the servers that come as wheels are started.
SHELL := /bin/bash
PYTHON ?= python3
UV_VERSION := 0.13.9
SERVE ?= 1
BIN := .venv/bin

ifeq ($(and $(DATABASE_URL),$(REDIS_URL)),)
export EMBEDDED_SERVERS ?= 1
endif

# uv trusts certificates of its own alone; a network that signs anew what it looks into is known to the system, and to pip.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS ?= 1
endif

.PHONY: demo run test check lint audit bench bench-stream bench-scale crashtest soak attack smoke fuzz scenarios lock clean

# What takes long says at once how far it is, into a file, too.
soak crashtest bench bench-stream bench-scale: export PYTHONUNBUFFERED ?= 1

demo: export LOG_LEVEL ?= WARNING
demo: export LOG_FORMAT ?= text
demo: .venv/embedded
	@$(BIN)/python manage.py demo $(if $(TRACE),--trace "$(TRACE)") $(if $(filter 0,$(SERVE)),--no-serve)

run: export LOG_FORMAT ?= text
run: export DEBUG ?= 1
run: .venv/embedded
	@$(BIN)/python manage.py migrate
	@trap 'kill $$(jobs -p) 2>/dev/null; wait' EXIT; \
		$(BIN)/celery -A analytics_site worker -B -c 2 & \
		$(BIN)/python manage.py runserver $${HTTP_PORT:-8084}

test: .venv/dev
	@$(BIN)/pytest $(ARGS)

bench: export LOG_LEVEL ?= WARNING
bench: .venv/dev
	@$(BIN)/python manage.py bench $(ARGS)

bench-stream: export LOG_LEVEL ?= WARNING
bench-stream: .venv/dev
	@$(BIN)/python manage.py bench_stream $(if $(MINUTES),--minutes $(MINUTES)) $(if $(BACKLOG),--backlog $(BACKLOG)) $(ARGS)

bench-scale: export LOG_LEVEL ?= WARNING
bench-scale: .venv/dev
	@$(BIN)/python manage.py bench_scale $(if $(EVENTS),--events $(EVENTS)) $(ARGS)

crashtest: export LOG_LEVEL ?= WARNING
crashtest: .venv/dev
	@$(BIN)/python manage.py crashtest $(ARGS)

# Has servers of its own; those that come along need not start for it.
soak: .venv/dev
	@EMBEDDED_SERVERS=0 DATABASE_URL=postgresql:///none REDIS_URL=redis://none LOG_LEVEL=WARNING \
		$(BIN)/python manage.py soak $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

# Keys and passwords from the environment: ATTACK_KEY_A, ATTACK_KEY_B, ATTACK_LOGIN_A, ATTACK_LOGIN_B.
attack: export LOG_LEVEL ?= WARNING
attack: .venv/dev
	@$(BIN)/python manage.py attack $(if $(URL),"$(URL)") $(if $(ORG_A),--org-a "$(ORG_A)") $(if $(ORG_B),--org-b "$(ORG_B)") $(ARGS)

# A key of the org from the environment: SMOKE_KEY. Needs no server of its own.
smoke: .venv/uv
	@[ -e .venv/embedded ] || $(MAKE) --silent .venv/embedded
	@EMBEDDED_SERVERS=0 DATABASE_URL=postgresql:///none REDIS_URL=redis://none \
		$(BIN)/python manage.py smoke "$(URL)" --org "$(ORG)" $(ARGS)

# What `make check` does with fewer: 5,000 and more requests made of the OpenAPI document, and a million made-up events.
fuzz: export FUZZ_EXAMPLES ?= 180
fuzz: export FUZZ_CASES ?= 5000
fuzz: export PROPERTY_EVENTS ?= 1000000
fuzz: export LOG_LEVEL ?= ERROR
fuzz: .venv/dev
	@$(BIN)/pytest tests/analytics_site/test_openapi.py tests/ingestion/test_properties.py -n 0 -s $(ARGS)

scenarios: .venv/dev
	@$(BIN)/python manage.py scenarios $(ARGS)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/djlint templates --check --lint --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check --fail-level WARNING

# Known vulnerabilities of what is locked; asks a database on the network.
audit: .venv/dev
	@$(BIN)/pip-audit --disable-pip --require-hashes --progress-spinner off -r requirements/dev.txt

check: lint test

# One lock per use, with hashes and without the address of any registry.
lock: .venv/uv
	for set in service exports tracing image embedded dev; do \
		extra=$$([ $$set = service ] || echo --extra $$set); \
		$(BIN)/uv pip compile pyproject.toml $$extra -o requirements/$$set.txt --quiet --universal \
			--python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header $(LOCK) || exit 1; \
	done

.venv/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which: make PYTHON=python3.11 …")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.venv/embedded: .venv/uv requirements/embedded.txt
	@[ -e .venv/dev ] && [ .venv/dev -nt requirements/dev.txt ] || \
		VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --require-hashes -r requirements/embedded.txt
	@touch $@

.venv/dev: .venv/uv requirements/dev.txt
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --require-hashes -r requirements/dev.txt
	@touch $@ .venv/embedded

clean:
	rm -rf .venv .embedded staticfiles
