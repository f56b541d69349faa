# SPDX-License-Identifier: Apache-2.0
"""gRPC: the API's definition, its two servers, and the clients that the CLI and the daemon use."""
