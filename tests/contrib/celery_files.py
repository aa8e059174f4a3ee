"""A Celery transport by files that can be read while they are written."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

from kombu.transport import filesystem


class Channel(filesystem.Channel):
    """A channel that publishes a message file only when it is complete.

    kombu's channel opens a file in the queue's folder and then writes it. A worker that
    reads in between gets an empty file, which is no JSON, and exits.
    """

    def _put(self, queue, payload, **_):
        name = f"{time.monotonic_ns()}_{uuid.uuid4()}.{queue}.msg"
        part = Path(self.data_folder_out, f"{name}.part")
        part.write_text(json.dumps(payload))
        part.rename(part.with_suffix(""))


class Transport(filesystem.Transport):
    """The transport for `broker_transport` of an app."""

    Channel = Channel
