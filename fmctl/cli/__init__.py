# SPDX-License-Identifier: Apache-2.0
"""The command line: a few lines a command, and the rendering of results and failures."""
