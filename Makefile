# `make` lists the targets. Each installs what it needs by itself.
# PYTHON=/path/to/python3 chooses the interpreter; WITHOUT="chromium" leaves out the tests that need it, saying so.

BIN   := .venv/bin
CODE  := bot adapters tests examples benchmarks
STAGE := sh scripts/stage

export WITHOUT

.PHONY: help run install test check format bench soak needs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

run: .venv/.runnable ## start Magpie with the web chat at http://127.0.0.1:8080/
	@exec $(BIN)/magpie serve

install: .venv/.installed ## make .venv with everything in it, tools for development included

# A test that meets a busy machine (real processes, real sockets) is run again, and listed as RERUN.
test: needs check ## everything: format, lint, types, all tests
	@echo "== tests"
	@$(BIN)/pytest -rfEsR --reruns 2 --durations 15

check: .venv/.installed ## format, lint and types, without the tests
	@$(STAGE) format $(BIN)/ruff format --check --quiet .
	@$(STAGE) lint $(BIN)/ruff check --quiet .
	@$(STAGE) types $(BIN)/mypy $(CODE)

format: .venv/.installed ## put the code into its form
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

bench: .venv/.installed ## measure beside bots on aiogram, python-telegram-bot and slack_bolt (20 minutes)
	@$(BIN)/python -m benchmarks.run
	@$(BIN)/python -m benchmarks.model_stream

soak: .venv/.installed needs ## some minutes of kills, outages and redelivery, then a check of the promises
	@$(BIN)/python -m benchmarks.soak

needs:
	@$(STAGE) "what the tests need" sh scripts/needs chromium fonts-noto-cjk curl postgresql

.venv/.runnable: pyproject.toml
	@$(STAGE) "install into .venv (the first time: a minute)" sh scripts/venv postgres
	@touch $@

.venv/.installed: pyproject.toml
	@$(STAGE) "install into .venv (the first time: a minute)" sh scripts/venv postgres dev
	@touch .venv/.runnable $@
