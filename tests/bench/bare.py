"""What a bare FastAPI route costs: the same body, checked and answered, with nothing behind it."""

from __future__ import annotations

import socket
import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Order(BaseModel):
    """The fields of a command that issues a code."""

    creator_id: str
    video_id: str
    terms_version: str


@app.post("/v1/codes", status_code=201)
async def issue(order: Order) -> Order:
    """Answer what was asked."""
    return order


@app.get("/v1/codes/{code_id}")
async def read(code_id: str) -> dict[str, str]:
    """Answer the id."""
    return {"code_id": code_id}


if __name__ == "__main__":
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    sys.stdout.write(f"http://127.0.0.1:{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(app, log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listening])
