# make install | demo | test | check
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check clean

install: .venv/installed

demo: install
	$(BIN)/s2m3 demo

test: .venv/installed-test
	scripts/test

check: .venv/installed-test
	scripts/check

# torch comes first: it decides which build the packages that need it accept. Then all other packages, each of which must
# have one of its hashes; the last step finds them there, and installs this project. scripts/hashes writes the hashes.
.venv/installed: pyproject.toml constraints.txt hashes-pocket.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "S2M3 needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make install PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement hashes-pocket.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[pocket]'
	@touch $@

.venv/installed-test: .venv/installed hashes-test.txt
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement hashes-test.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[pocket,test]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
