"""httpx-sse, following the stream of events: a line for each event.

python httpx_sse_.py URL KEY
"""

from __future__ import annotations

import json
import sys
import time

import httpx
from httpx_sse import SSEError, connect_sse

url, key = sys.argv[1:]
last_id = ""
with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=30, trust_env=False) as client:
    while True:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        try:
            with connect_sse(client, "GET", f"{url}/v1/events/stream?after=0", headers=headers) as source:
                for sent in source.iter_sse():
                    last_id = sent.id
                    if sent.event != "message" or not sent.data:
                        continue
                    event = json.loads(sent.data)
                    name = event.get("code_id") or event.get("creator_id")
                    print(  # noqa: T201 - the process that started this one reads it
                        json.dumps([event["position"], name, event["event_id"], event["stream_version"]]), flush=True
                    )
        except (httpx.HTTPError, SSEError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201 - as above
        time.sleep(0.5)  # the server's `retry` is 1 s
