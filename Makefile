# Each target sets itself up. `make help` tells what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# The Python that .venv is made from.
PYTHON ?= python3
# KEEP=1 leaves the demo's cluster running, and keeps the histories and logs of chaos.
KEEP ?=
# What decides chaos, or the one schedule of the simulation; random where nothing is named.
SEED ?=
# How long chaos lasts.
MINUTES ?= 20
# How many schedules the simulation plays, and whether it logs all.
RUNS ?= 2000
LOG ?=
# Whether the bench is quick and coarse, and its lines, if not all.
QUICK ?=
LINES ?=
# How far the search goes with two names.
STATES ?= 5000000
# How many processes simulate, search or kill side by side.
JOBS ?= 2

# What the demo runs is installed; the tools of development are installed on top.
RUN := .venv/run
MADE := .venv/made
# Which of the deliberate defects are tried, and whether by each kind of test.
ALL ?=
ONLY ?=
# How many workers test side by side: most tests wait, so there are more than processors.
WORKERS ?= 4
PARALLEL = -n $(WORKERS) --dist loadgroup
# Seconds for one test of the lab, its guests' boot included: what waits in it has its own deadline.
LAB_S := 900

.PHONY: .venv bench chaos check clean constraints demo explore help kernel lab man mutants pictures sim \
    test test-all

help:  ## this list
	@grep -hE '^[-.a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv: $(MADE)  ## the environment, with .venv/bin/mdevns (PYTHON=… to choose the Python)

# A stamp comes last, so that an environment that was half made does not count as made.
$(RUN): pyproject.toml constraints.txt
	@echo "creating the environment .venv"
	$(call make_venv,.venv)
	echo "installing what the demo runs"
	$(call install,embedded)
	touch $@

$(MADE): $(RUN)
	@echo "installing the tools of development"
	$(call install,embedded$(comma)dev)
	touch $@

demo: $(RUN)  ## the story on three simulated hosts, under a minute (KEEP=1 leaves it running)
	@echo "starting the demo"
	.venv/bin/mdevns demo $(if $(KEEP),--keep)

test: $(MADE)  ## what this machine can run, without lab and long searches (WORKERS=4 at once)
	@.venv/bin/pytest tests --ignore=tests/lab $(PARALLEL) -m "not long"

test-all: $(MADE)  ## the same with the long ones: chaos, kills, searches, installs (CI=true: no skip)
	@.venv/bin/pytest tests --ignore=tests/lab $(PARALLEL)

# Whatever the figures say it ends well; only a whole run writes docs/bench anew.
bench: $(MADE)  ## ours against etcd's own, in turns, under 5 minutes (QUICK=1, LINES="claim …")
	@.venv/bin/python -m tests.bench $(if $(QUICK),--quick) $(LINES)

# Not by pytest: it is long, and its table is what it is for.
chaos: $(MADE)  ## faults on three etcd servers and hosts in containers (MINUTES=20, SEED=…, KEEP=1)
	@.venv/bin/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(KEEP),--keep)

# One name to the end, space by space, and two names up to so many states; about half an hour.
explore: $(MADE)  ## every interleaving of one name, and STATES=… of two (JOBS=2 at once)
	@.venv/bin/python -m tests.model --names 1 --processes $(JOBS)
	.venv/bin/python -m tests.model --names 2 --states $(STATES)

lab: $(MADE)  ## the same on real kernels, in QEMU guests
	@.venv/bin/python -m deploy.lab build
	.venv/bin/pytest -v -o timeout=$(LAB_S) tests/lab

# RUNS schedules of fresh seeds, JOBS at a time; or one seed, or a file of schedules, again.
sim: $(MADE)  ## search by simulation (RUNS=2000 JOBS=2), or play again: SEED=… (LOG=1 says all)
	@.venv/bin/python -m tests.sim $(if $(SEED),--seed $(SEED),--runs $(RUNS) --jobs $(JOBS)) $(if $(LOG),--log)

check: $(MADE)  ## ruff and mypy --strict over everything
	@.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

kernel: $(MADE)  ## docs/kernel.md, from the rows of the conformance suite
	@.venv/bin/python -m deploy.lab.conformance document > docs/kernel.md

man: $(MADE)  ## the manual, a page a command, in build/man
	@.venv/bin/python -m cli.manpages build/man

mutants: $(MADE)  ## deliberate defects, each to be killed by a test (JOBS=2 ALL=1 ONLY="ID …")
	@.venv/bin/python -m tests.mutants.run --jobs $(JOBS) $(if $(ALL),--all) $(ONLY)

pictures: $(MADE)  ## the README's pictures, from a real run, in docs/pictures
	@.venv/bin/python -m deploy.pictures docs/pictures

constraints:  ## write constraints.txt anew from the newest versions that pyproject.toml allows
	@fresh=$$(mktemp -d)
	trap 'rm -rf "$$fresh"' EXIT
	$(call make_venv,"$$fresh")
	"$$fresh"/bin/pip install --quiet -e '.[embedded,dev]'
	{
	    echo '# The versions that were tested, with Python 3.11 and newer. Made by: make constraints'
	    "$$fresh"/bin/pip freeze --exclude-editable
	} > "$$fresh"/constraints.txt
	cp "$$fresh"/constraints.txt constraints.txt

clean:  ## remove what was made here
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call install,EXTRAS): the package with these extras into .venv, with a line for each package
# that pip looks up, and their number at the end.
comma := ,
define install
.venv/bin/pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[$(1)]' \
    | { grep --line-buffered -oE '^(Collecting [^ ]+|Installing collected packages)' || true; }
echo ".venv has $$(.venv/bin/pip --disable-pip-version-check list --format=freeze | wc -l) packages"
endef

# $(call make_venv,DIRECTORY): an empty environment, or one line that says what is missing.
# Debian's python3 has the module venv but not ensurepip, without which it cannot make one.
define make_venv
version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) \
    || { echo "PYTHON=$(PYTHON) does not run; name a Python 3.11 or newer: make PYTHON=…" >&2; exit 1; }
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || { echo "$(PYTHON) is Python $$version; name a Python 3.11 or newer: make PYTHON=…" >&2; exit 1; }
if ! $(PYTHON) -c 'import ensurepip, venv; ensurepip.version()' 2>/dev/null; then
    if [[ $$EUID != 0 ]] || ! command -v apt-get >/dev/null; then
        echo "$(PYTHON) cannot make environments; type: sudo apt-get install python3-venv" >&2
        exit 1
    fi
    echo "$(PYTHON) cannot make environments; installing python3-venv"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
fi
rm -rf $(1)
$(PYTHON) -m venv $(1)
endef
