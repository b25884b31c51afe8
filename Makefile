# make demo   the main job, set-up included: gallery, server, gathers over HTTP, a table and a picture
# make test   the tests, set-up included; make test-all: also the long ones, which repeat them for more cases
# make check  ruff and mypy alone
# make serve  the server over the demo's gallery
.PHONY: demo test test-all check serve setup setup-dev

export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 1)
WORKERS ?= 2

setup:
	@bash setup.sh

setup-dev:
	@bash setup.sh dev

demo: setup
	@.venv/bin/seisbind demo

test: setup-dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist loadgroup

test-all: setup-dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m '' -n $(WORKERS) --dist loadgroup

check: setup-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

serve: setup
	@test -d demo-output/gallery || .venv/bin/seisbind gallery build demo-output/gallery --count 2000
	@.venv/bin/seisbind serve --gallery demo-output/gallery
