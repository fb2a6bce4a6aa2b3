# Each target sets up what it needs: a virtual environment in .venv, on a machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: compare test test-processors docs lint native sanitize clean

compare: $(VENV)/.installed  ## run the main job on the embedded corpus: make compare ARGS="--budget 3m"
	$(VENV)/bin/moekit compare $(ARGS)

# Small models gain nothing from a second thread, so each core runs tests of its own, a file at a time and in their order:
# sorted by how many tests they have, the file that takes longest would come last. Exit status 5: none was chosen.
test: lint  ## lint, type-check and test: make test ARGS=tests/nn
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n logical --dist loadfile --no-loadscope-reorder -m "not alone" $(ARGS) || [ $$? = 5 ]
	$(VENV)/bin/python -m pytest -m alone $(ARGS) || [ $$? = 5 ]

test-processors: $(VENV)/.installed-dev  ## what depends on the processor, as lesser ones compute it
	$(VENV)/bin/python tests/lesser_processors.py $(ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $$(find native -name '*.h' -o -name '*.inl' -o -name '*.cpp')
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

native: $(VENV)/.installed-dev  ## compile native/ again, what has changed of it; unlike an installation it fails where that does
	MOEKIT_NATIVE_REQUIRED=1 $(PIP) --no-build-isolation --no-deps -e .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "moekit needs Python 3.11 or newer; name one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing moekit into $(VENV) and compiling its kernels (two or three minutes the first time)"
	command -v cmake >/dev/null || $(PIP) cmake
	$(PIP) nanobind ninja scikit-build-core
	$(PIP) --no-build-isolation -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the tools for development into $(VENV)"
	$(PIP) --no-build-isolation -e '.[dev]'
	touch $@

# Once for memory and undefined behaviour, once for threads: the two exclude each other.
sanitize: $(VENV)/.installed  ## build the native tests under sanitizers, and run them
	export PATH="$$PATH:$(CURDIR)/$(VENV)/bin"; for sanitizers in address,undefined thread; do \
	  folder=build/sanitize-$${sanitizers%%,*}; \
	  cmake -S native -B $$folder -DMOEKIT_MODULE=OFF -DMOEKIT_TESTS=ON -DMOEKIT_SANITIZE=$$sanitizers >/dev/null && \
	  cmake --build $$folder --parallel $$(nproc) && \
	  ctest --test-dir $$folder --output-on-failure || exit; \
	done

docs: $(VENV)/.installed-dev  ## build the site of docs/ into build/site, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist
