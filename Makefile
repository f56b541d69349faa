# SPDX-License-Identifier: Apache-2.0
# Each target sets up what it needs; nothing has to be installed first but make.

.PHONY: venv demo test bench proto

venv: .venv/ready

.venv/ready: pyproject.toml tools/setup tools/constraints.txt fmctl/sim/nvfm_shim.c
	tools/setup
	touch $@

demo: venv
	tools/demo

test: venv
	.venv/bin/python -m pytest

bench: venv
	.venv/bin/python -m tests.bench

proto: venv
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python tools/generate_proto.py
