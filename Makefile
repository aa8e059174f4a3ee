# All that a developer does here, from a fresh clone on: needs Python 3.10 or newer, git
# and make. Each target sets up what it needs in a virtual environment of the checkout.
#
#   make test PYTEST_ARGS="-k delivery -x"      pass something to pytest
#   make test PYTHON=python3.13 VENV=.venv-3.13     another Python, beside the first

VENV ?= .venv
# Tried in this order when the virtual environment is made; the first that will do is
# taken.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11 python3.10 python
PYTEST_ARGS ?=

bin := $(VENV)/bin
run := $(bin)/python -m

# Two installs into one environment at the same time break it.
.NOTPARALLEL:

.PHONY: help demo test kafka-test install-test kafka chaos chaos-transactions sweep soak \
    endurance hostile-input matrix bench lint types docs screenshots clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' \
	    $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed ## produce from hundreds of greenlets, no broker needed
	$(bin)/python examples/quickstart.py

# They mostly wait, so four processes suit two cores. Where one is wanted, as for a
# debugger: PYTEST_ARGS=-n0
test: $(VENV)/.installed-test ## run the tests that need no broker
	$(run) pytest -n 4 --dist worksteal \
	    -m "not kafka and not bench and not install and not sweep" $(PYTEST_ARGS)

# A test's time limit includes its fixtures, and the first one may have to fetch Kafka
# and to start three nodes.
kafka-test: $(VENV)/.installed-test ## run the tests against Apache Kafka
	$(run) pytest -m "kafka and not bench" --timeout=180 $(PYTEST_ARGS)

# `make test` takes a sample of it. They mostly wait, so eight processes suit two cores.
sweep: $(VENV)/.installed-test ## interrupt every verb at every function that it runs
	$(run) pytest -n 8 --dist worksteal -m sweep tests/sweep $(PYTEST_ARGS)

# They mostly wait, so two processes suit two cores.
install-test: $(VENV)/.installed-test ## try each documented way to install
	$(run) pytest -n 2 -m install \
	    tests/project/test_install.py $(PYTEST_ARGS)

kafka: PORT ?= 9092
kafka: $(VENV)/.installed-test ## start one Apache Kafka node at localhost:9092, until Ctrl-C
	$(run) tests.servers.kafka --port $(PORT)

# Not among the tests: it needs both cores. DURATION is in seconds, of all loads together.
# LOAD=greenlets,threads chooses loads; ARGS="--help" lists them, and more options.
chaos: DURATION ?= 600
chaos: SEED ?= 1
chaos: $(VENV)/.installed-test ## send while brokers and networks fail, and judge it
	$(run) tests.chaos --duration $(DURATION) --seed $(SEED) \
	    $(if $(LOAD),--load $(LOAD)) $(ARGS)

# PEER=raw is confluent-kafka alone, which loses messages (docs/decisions/0023).
# FAULTS=network loses answers of a single node, which shows that within a minute;
# FAULTS=nodes, the default, kills and pauses nodes.
chaos-transactions: DURATION ?= 120
chaos-transactions: SEED ?= 1
chaos-transactions: CLIENTS ?= 6
chaos-transactions: PEER ?= greendrop
chaos-transactions: FAULTS ?= nodes
chaos-transactions: $(VENV)/.installed-test ## only transactions, or confluent-kafka's
	$(run) tests.chaos --duration $(DURATION) --seed $(SEED) --load transactions \
	    --tasks $(CLIENTS) --peer $(PEER) --faults $(FAULTS) \
	    --nodes $(if $(filter network,$(FAULTS)),1,3)

# A round that fails prints its options: ARGS="--only patched --rounds 1 --shrink" SEED=7
# repeats that round and makes its program smaller.
soak: DURATION ?= 120
soak: SEED ?= 1
soak: $(VENV)/.installed-test ## run random programs on brokers that fail
	$(run) tests.soak --duration $(DURATION) --seed $(SEED) $(ARGS)

# `make test` takes a sample of it.
hostile-input: CASES ?= 100000
hostile-input: $(VENV)/.installed-test ## pass in whatever hypothesis thinks of
	GREENDROP_CASES=$(CASES) $(run) pytest -n 2 \
	    tests/security/test_hostile_input.py $(PYTEST_ARGS)

endurance: MESSAGES ?= 10000000
endurance: PRODUCERS ?= 1000
endurance: $(VENV)/.installed-test ## send for long, and see what grows
	$(run) tests.soak.endurance --messages $(MESSAGES) --producers $(PRODUCERS)

# CELLS="libuv 'python 3.13'" runs some; ARGS="--help" lists more options.
matrix: $(VENV)/.installed-test ## run short tests on each Python, library and agent
	$(run) tests.matrix --pytest-args="$(PYTEST_ARGS)" $(ARGS) $(CELLS)

bench: $(VENV)/.installed-test $(VENV)/.installed-bench ## measure against others
	$(run) tests.benchmarks

lint: $(VENV)/.installed-lint ## check style and format
	$(run) ruff check
	$(run) ruff format --check

types: $(VENV)/.installed-lint $(VENV)/.installed-test ## check types
	$(run) mypy
	$(bin)/pyright --pythonpath $(bin)/python

docs: $(VENV)/.installed-docs ## build docs/_build/html
	$(run) sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "The documentation is in $(CURDIR)/docs/_build/html/index.html"

# Needs Chromium. Another folder: SCREENSHOTS=/tmp/pictures
screenshots: SCREENSHOTS ?= docs/_build/screenshots
screenshots: docs ## show the docs as on a desk and on a phone
	$(bin)/python docs/screenshots.py $(SCREENSHOTS)

clean: ## remove what was built; the virtual environments stay
	rm -rf build dist *.egg-info docs/_build
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path './.venv*' -prune -o -path ./.tox -prune -o \
	    -name __pycache__ -exec rm -rf {} +

# One stamp per set of extras, older than setup.cfg when that has changed since.
# --use-pep517 is for the pip that comes with Python 3.10, which without it takes a way
# that knows less metadata.
install = $(run) pip install --quiet --disable-pip-version-check --use-pep517 --editable

$(VENV)/.installed: setup.cfg setup.py | $(bin)/python
	$(install) .
	@touch $@

$(VENV)/.installed-%: setup.cfg setup.py | $(bin)/python
	$(install) ".[$*]"
	@touch $@

# ensurepip is asked for too: Debian's Python lacks it without the package python3-venv.
suitable = import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))

$(bin)/python:
	@for python in $(PYTHON); do \
	    if "$$python" -c '$(suitable)' >/dev/null 2>&1; then \
	        echo "$$python -m venv $(VENV)"; \
	        exec "$$python" -m venv $(VENV); \
	    fi; \
	done; \
	echo "greendrop needs Python 3.10 or newer, with venv and ensurepip. Tried:" \
	    "$(PYTHON). Name one with: make PYTHON=/path/to/python3" >&2; \
	exit 1
