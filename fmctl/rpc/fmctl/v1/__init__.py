# SPDX-License-Identifier: Apache-2.0
"""Generated from the .proto files by tools/generate_proto.py."""
