# SPDX-License-Identifier: Apache-2.0
"""The emulated host's end of the command channel: a line of JSON in, a command run, a line of JSON out.

`tests.lab.channel` is the other end. Output goes to files, so that a process which a command leaves behind holds up
nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path

PORT = Path("/dev/virtio-ports/lab")
LIMIT = 4 * 1024 * 1024
"""The most bytes of output that are sent."""


def run(command: str, timeout: float) -> dict[str, object]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            ["/bin/bash", "-c", command], stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            status, timed_out = process.wait(timeout), False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status, timed_out = process.wait(), True
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read(LIMIT).decode(errors="replace"))
    return {"status": status, "timed_out": timed_out, "out": texts[0], "err": texts[1]}


def main() -> None:
    with PORT.open("r+b", buffering=0) as port:
        port.write(b'{"hello": true}\n')
        pending = b""
        while chunk := port.read(65536):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                answer = json.dumps(run(asked["command"], asked["timeout"])).encode() + b"\n"
                while answer:
                    answer = answer[port.write(answer) :]


if __name__ == "__main__":
    main()
