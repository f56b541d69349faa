# SPDX-License-Identifier: Apache-2.0
"""Thin adapters to what runs inside the Service VM."""
