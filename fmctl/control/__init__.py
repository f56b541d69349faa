# SPDX-License-Identifier: Apache-2.0
"""Procedures that act on the world through the ports of `core.ports`."""
