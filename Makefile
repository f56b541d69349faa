# SPDX-License-Identifier: Apache-2.0
# Each target sets up what it needs; nothing has to be installed first but make.

.PHONY: venv demo test soak lab lab-test image-test bench proto wheels install install-test uninstall

venv: .venv/ready

.venv/ready: pyproject.toml tools/setup tools/packages tools/constraints.txt fmctl/sim/nvfm_shim.c
	tools/setup
	touch $@

demo: venv
	tools/demo

test: venv
	.venv/bin/python -m pytest

soak: venv
	FMCTL_SEQUENCES=20000 .venv/bin/python -m pytest tests/chaos

lab: venv
	tools/setup-lab
	.venv/bin/python -m tests.lab shell

lab-test: venv
	tools/setup-lab
	.venv/bin/python -m tests.lab test

image-test: venv
	tools/setup-image
	.venv/bin/python -m pytest -m image tests/image

bench: venv
	tools/setup-lab
	.venv/bin/python -m tests.bench
	.venv/bin/python -m tests.lab bench

proto: venv
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python tools/generate_proto.py

wheels:
	tools/wheels "$(WHEELS)"

install:
	DESTDIR="$(DESTDIR)" PREFIX="$(or $(PREFIX),/usr)" WHEELS="$(WHEELS)" tools/install

install-test: venv
	.venv/bin/python -m pytest -m install tests/systemd

uninstall:
	DESTDIR="$(DESTDIR)" PREFIX="$(or $(PREFIX),/usr)" tools/uninstall
