# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: `make bench`. Each figure stands beside a reference measured in the same run, and only ratios count."""
