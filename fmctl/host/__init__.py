# SPDX-License-Identifier: Apache-2.0
"""Thin adapters to the host."""
