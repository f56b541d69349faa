# SPDX-License-Identifier: Apache-2.0
"""Pure decisions and values: no I/O, no clock, no grpc, no libvirt."""
