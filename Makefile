# All there is to set up: `make up` runs it, `make test` checks it. Both install into .venv first, with Python alone.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: audit-dependencies install up up-compose down down-compose test lint types suite soak test-kafka bench bench-quick lock clean help

help:  ## what there is
	@grep -E '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(INSTALLED)  ## build .venv from the lock file

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is wanted, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 …")'
	@echo "Installing into .venv (about a minute the first time) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

up: install  ## start everything and watch it work; ctrl-C stops it
	@$(BIN)/recs up

down: install  ## stop what `make up` started
	@$(BIN)/recs down

up-compose: install  ## start docker-compose.yml, its passwords made up in .env (needs Docker)
	@$(BIN)/python -m recs_platform.stack.compose .env
	docker compose up --detach --build --wait

down-compose:  ## stop it; the volumes stay
	docker compose down

test: lint types suite  ## lint, strict types, the suite

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

suite: install
	$(BIN)/pytest -n 2 --dist loadfile

soak: install  ## faults under load for a quarter of an hour; OPTIONS="--minutes 60 --seed 1"
	$(BIN)/python -m recs_platform_tests.soak $(OPTIONS)

test-kafka: install  ## the broker-facing tests against Apache Kafka 4 (needs Java and Maven)
	$(BIN)/python -m recs_platform_tests.apache_kafka $(BIN)/pytest recs_platform_tests/test_intake.py recs_platform_tests/test_engine.py recs_platform_tests/test_risingwave.py \
		recs_platform_tests/test_dead_letters.py recs_platform_tests/test_topic_reader.py

audit-dependencies: install  ## known vulnerabilities of what requirements.lock pins (asks pypi.org)
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv tool run pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict

bench: install  ## how fast it is and what it costs: about an hour, into .bench/report.md; OPTIONS="--events 10000000"
	$(BIN)/python -m bench $(OPTIONS)

bench-quick: install  ## only that the benchmarks run
	$(BIN)/python -m bench --quick $(OPTIONS)

bench-%: install  ## one part: freshness, sustained, catchup, rebuild, switch, slope, writes, memory, serving, restart, ticks, faults, baselines
	$(BIN)/python -m bench $* $(OPTIONS)

lock: install  ## write requirements.lock anew from pyproject.toml
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-strip-extras --python-version 3.11 --extra dev --extra compose \
		--custom-compile-command "make lock" pyproject.toml -o requirements.lock

clean:  ## stop the stack; remove .venv, the state of the stack and what was measured
	@test ! -x $(BIN)/recs || { $(BIN)/recs down && $(BIN)/python -m recs_platform.stack.clean; }
	rm -rf .venv .recs .bench
