# Commands for work on llama3. They use the environment in .venv; `make PYTHON=python3 ...` uses another one.
PYTHON ?= .venv/bin/python

help:  ## list these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

test:  ## run the tests
	$(PYTHON) -m pytest -n auto

lint:  ## check style, format and types
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

bench:  ## run the quick benchmarks, about two minutes; benchmarks/ has more
	PYTHONPATH=. $(PYTHON) benchmarks/startup.py
	PYTHONPATH=. $(PYTHON) benchmarks/tokenizer.py
	PYTHONPATH=. $(PYTHON) benchmarks/sampler.py

docs:  ## write docs/cli.md, docs/api.md, the pictures and the tour from the code
	$(PYTHON) -m docs.make_reference
	$(PYTHON) -m docs.make_picture
	$(PYTHON) -m docs.make_heads_picture
	$(PYTHON) -m docs.make_tour

.PHONY: help test lint bench docs
