"""An agent without a model, on the official Python client (PyPI `mcp`).

    client.py legacy|auto stdio PROGRAM ARGUMENT...
    client.py legacy|auto http URL [TOKEN]

It reads one command a line, and prints one result a line: {"list": true}, or {"call": TOOL, "arguments": {...}}, with
"progress": true and "cancel_after": SECONDS if wanted. The first line that it prints has the revision in use.
"""

import asyncio
import json
import os
import sys

import httpx2
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError


def transport(kind, arguments):
    if kind == "stdio":
        program, *rest = arguments
        return stdio_client(StdioServerParameters(command=program, args=rest, env=dict(os.environ)))
    url, *token = arguments
    headers = {"Authorization": f"Bearer {token[0]}"} if token else {}
    client = httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(60))
    return streamable_http_client(url, http_client=client)


async def call(client, command):
    stages = []

    async def on_progress(progress, total, message):
        stages.append([progress, message])

    callback = on_progress if command.get("progress") else None
    calling = client.call_tool(command["call"], command.get("arguments"), progress_callback=callback)
    try:
        result = await asyncio.wait_for(calling, command.get("cancel_after"))
    except asyncio.TimeoutError:
        return {"cancelled": True}
    return {
        "text": result.content[0].text,
        "structure": result.structured_content,
        "isError": result.is_error,
        "progress": stages,
    }


async def answer(client, command):
    try:
        if command.get("list"):
            listed = await client.list_tools()
            return {"tools": [tool.model_dump(by_alias=True, exclude_none=True) for tool in listed.tools]}
        return await call(client, command)
    except MCPError as error:
        return {"error": error.error.code, "message": error.error.message}


def write(value):
    print(json.dumps(value), flush=True)


async def main():
    mode, kind, *arguments = sys.argv[1:]
    async with Client(transport(kind, arguments), mode=mode) as client:
        info = client.server_info
        write({"revision": client.protocol_version, "server": info and info.name})
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            write(await answer(client, json.loads(line)))


asyncio.run(main())
