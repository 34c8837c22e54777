# Two commands for people: `make chat` and `make test`. Both set up everything they need in .venv.
#
# torch first and by exact version, then this package without build isolation: an isolated build would fetch a second,
# much larger torch. A machine with a GPU gets the same command; set TORCH to pick another build.

VENV  ?= .venv
TORCH ?= torch==2.13.0
PIP   := $(VENV)/bin/python -m pip --disable-pip-version-check

# What the installed package depends on: native sources are compiled, Python sources are used in place.
INSTALL_INPUTS := setup.py pyproject.toml $(shell find csrc -type f 2>/dev/null)

.PHONY: chat test lint types clean help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

chat: $(VENV)/.installed  ## open the chat with the built-in model; without a terminal print a generation
	@if [ -t 0 ] && [ -t 1 ]; then exec $(VENV)/bin/exl2-tui; \
	 else exec $(VENV)/bin/exl2-tui generate -m built-in -p "Once upon a time," -n 128; fi

test: $(VENV)/.installed-test lint types  ## check style and types, then run every test
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-test
	$(VENV)/bin/mypy

clean:  ## remove the virtual environment and everything built
	rm -rf $(VENV) build exl2_tui/*.so

$(VENV)/.torch:
	@tools/make-venv "$(VENV)"
	@echo "Installing $(TORCH) (once; this may take a few minutes)"
	@$(PIP) install --quiet "setuptools>=77" wheel "ninja>=1.11" "$(TORCH)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(INSTALL_INPUTS)
	@echo "Building and installing exl2-tui"
	@$(PIP) install --quiet --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@$(PIP) install --quiet --no-build-isolation --editable ".[test]"
	@touch $@
