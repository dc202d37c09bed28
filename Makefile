# Tenfold. `make` shows what there is; needs Python 3.11 or newer, pip and make, nothing else.
#   ARGS="..."        is handed to the command behind a target
#   PYTHON=python3.12 picks the Python that .venv is made with

ifndef PYTHON
PYTHON := $(firstword $(shell command -v python3 || command -v python) python3)
endif
BIN := .venv/bin

PAPERS := flashsloth dyvte gamma_mod fitprune dtnet dit_sam eas e3_facenet llava_hr inst_diff_edit
VERBS := train eval bench claims cite
HERE := $(foreach paper,$(PAPERS),$(if $(wildcard packages/$(paper)/pyproject.toml),$(paper)))
# Commands have the dash where folders have the underscore.
command = $(BIN)/$(subst _,-,$(1))

# Two workers are two cores; one thread each, or they wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
PACKAGE_TESTS := shared/tests $(wildcard packages/*/tests)
TESTS := $(PACKAGE_TESTS) tests

unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-oldest test-newest lint format claims bench efficiency report wheels lmms peers lock clean

help:  ## show this
	@echo "Tenfold: ten vision-language papers, each one install away."
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1 | \2/p' Makefile | awk -F'|' '{ printf "%-23s %s\n", $$1, $$2 }'
	@echo
	@echo "  make PAPER-VERB        one paper; ARGS=\"...\" goes to its command"
	@echo "    VERB:    $(VERBS) test"
	@echo "    PAPER:   $(or $(strip $(HERE)),none yet)"
	@echo "    planned: $(filter-out $(HERE),$(PAPERS))"

# A recipe's first line: the Python is there.
define python_is_there
@command -v "$(PYTHON)" >/dev/null || { echo "error: no such Python: $(PYTHON) (expected Python 3.11 or newer, such as make PYTHON=python3.12)" >&2; exit 2; }
endef

setup:  ## make or repair .venv (instant when it stands)
	$(python_is_there)
	@"$(PYTHON)" bootstrap.py

demo: setup  ## every paper's demo, its claims, and the report
	@for paper in $(HERE); do \
	  echo "demo: $$paper"; command=$(BIN)/$$(echo $$paper | tr _ -); \
	  rm -rf runs/demo/$$paper && $$command demo --output runs/demo/$$paper $(ARGS) && $$command claims || exit 1; \
	done
	@echo "demo: the report"
	@$(BIN)/python -m tenfold.ledger.report --output report

test: lint  ## lint and all tests but the slow ones (minutes)
	@$(PYTEST) -m "not slow and not cuda" $(TESTS) $(ARGS)

test-all: lint  ## all tests: also kill tests by the dozen, real pip installs, a fresh resolution
	@$(PYTEST) -m "not cuda" $(TESTS) $(ARGS)

# The argument: oldest or newest.
define test_versions
$(python_is_there)
@"$(PYTHON)" bootstrap.py $(1)
@OMP_NUM_THREADS=1 .venv-$(1)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(PACKAGE_TESTS) $(ARGS)
endef

test-oldest:  ## the packages' quick tests at the lowest versions that they state, in .venv-oldest
	$(call test_versions,oldest)

test-newest:  ## the packages' quick tests at the newest versions of the index, in .venv-newest
	$(call test_versions,newest)

lint: setup  ## ruff: rules and format; mypy: no more errors than before
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python tests/types_ceiling.py

format: setup  ## let ruff put right what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

claims: setup  ## every paper's numbers beside ours
	@for paper in $(HERE); do $(BIN)/$$(echo $$paper | tr _ -) claims $(ARGS) || exit 1; done

bench: setup  ## every paper's speed on this machine
	@for paper in $(HERE); do $(BIN)/$$(echo $$paper | tr _ -) bench $(ARGS) || exit 1; done

efficiency: setup  ## everything that makes a model cheaper, side by side on one host (minutes)
	@$(BIN)/python benchmarks/efficiency.py $(ARGS)

report: setup  ## the static report of the ten papers, in report/
	@$(BIN)/python -m tenfold.ledger.report --output report $(ARGS)

wheels: setup  ## release wheels, in dist/
	@rm -rf dist
	@version=$$($(BIN)/python -c "import tenfold; print(tenfold.__version__)") && \
	for project in shared $(HERE:%=packages/%); do \
	  TENFOLD_PIN="==$$version" $(BIN)/uv build --quiet --wheel --no-build-isolation \
	    --python $(BIN)/python --out-dir dist $$project || exit 1; \
	done
	@ls dist/*.whl

lmms:  ## lmms-eval in .venv-lmms, and the tests of our plug-ins with it
	$(python_is_there)
	@"$(PYTHON)" bootstrap.py lmms
	@OMP_NUM_THREADS=1 .venv-lmms/bin/python -m pytest packages/fitprune/tests/test_lmms.py packages/llava_hr/tests/test_lmms.py $(ARGS)

peers: setup  ## the libraries' common tests on ours: PEERS=FOLDER with checkouts of transformers and diffusers
	@$(BIN)/python benchmarks/peers.py $(PEERS) --output benchmarks/results/peers.json $(ARGS)

lock:  ## derive requirements.lock again from the pyproject.toml files
	$(python_is_there)
	@"$(PYTHON)" bootstrap.py lock

clean:  ## remove what make made, but for runs/
	@rm -rf .venv .venv-lmms .venv-oldest .venv-newest .tools dist report .pytest_cache .ruff_cache .mypy_cache .hypothesis uv.lock
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One paper: make fitprune-bench ARGS="--layers 2"

# $(1) paper, $(2) verb
define paper_verb
.PHONY: $(1)-$(2)
$(1)-$(2): setup
	@$(call command,$(1)) $(2) $$(ARGS)
endef

define paper_test
.PHONY: $(1)-test
$(1)-test: setup
	@$$(PYTEST) -m "not slow" packages/$(1)/tests $$(ARGS)
endef

define planned
.PHONY: $(1)-$(2)
$(1)-$(2):
	@echo "$(1) is planned: it has no package yet" >&2; exit 2
endef

$(foreach paper,$(HERE),$(foreach verb,$(VERBS),$(eval $(call paper_verb,$(paper),$(verb)))))
$(foreach paper,$(HERE),$(eval $(call paper_test,$(paper))))
$(foreach paper,$(filter-out $(HERE),$(PAPERS)),$(foreach verb,$(VERBS) test,$(eval $(call planned,$(paper),$(verb)))))
