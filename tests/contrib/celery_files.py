"""Celery's queue of files, for who reads it while another writes."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

from kombu.transport import filesystem


class Channel(filesystem.Channel):
    """One that puts a message among the others when it is whole.

    kombu's opens a file there and then writes it. A worker that looks in between reads
    nothing, which is no JSON, and ends.
    """

    def _put(self, queue, payload, **_):
        name = f"{time.monotonic_ns()}_{uuid.uuid4()}.{queue}.msg"
        part = Path(self.data_folder_out, f"{name}.part")
        part.write_text(json.dumps(payload))
        part.rename(part.with_suffix(""))


class Transport(filesystem.Transport):
    """What `broker_transport` of an app names."""

    Channel = Channel
