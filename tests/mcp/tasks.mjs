// The agent of client.mjs as one that takes tasks, on the official client of the extension (npm
// `@modelcontextprotocol/ext-tasks`), which is with the TypeScript client in the directory that MCP_TASKS_CLIENT names.
//
//     tasks.mjs auto http URL
//
// It prints how each call ended, and the statuses of its task on the way: {"call": TOOL, "arguments": {...}}, with "cancel":
// true to cancel the task once there is one.

import { createInterface } from "node:readline";

const packages = `${process.env.MCP_TASKS_CLIENT}/node_modules/@modelcontextprotocol`;
const { Client, StreamableHTTPClientTransport } = await import(`${packages}/client/dist/index.mjs`);
const { createTaskSessionFromClient } = await import(`${packages}/ext-tasks/dist/client/index.js`);

const [mode, , url] = process.argv.slice(2);
const clientInfo = { name: "agent", version: "1" };
const client = new Client(clientInfo, { versionNegotiation: { mode } });

// The client knows no tasks: what the extension sends goes past it.
let last = 0;
async function rawDispatch({ method, params }, { context, signal } = {}) {
  const { arguments: values } = params;
  const namespace = values?.parameters?.namespace ?? values?.namespace;
  const response = await fetch(url, {
    method: "POST",
    signal,
    headers: {
      "Content-Type": "application/json",
      Accept: "application/json, text/event-stream",
      "MCP-Protocol-Version": "2026-07-28",
      "Mcp-Method": method,
      ...(params.name && { "Mcp-Name": params.name }),
      ...(namespace && { "Mcp-Param-Namespace": namespace }),
      ...context?.headers,
    },
    body: JSON.stringify({ jsonrpc: "2.0", id: ++last, method, params }),
  });
  const text = await response.text();
  const streamed = response.headers.get("content-type").startsWith("text/event-stream");
  const data = streamed ? text.trim().split("\n").filter((line) => line.startsWith("data: ")).at(-1).slice(6) : text;
  const { result, error } = JSON.parse(data);
  return error ? { kind: "error", error } : { kind: "result", result };
}

async function call(session, command) {
  const execution = await session.callTool(command.call, command.arguments);
  const statuses = [];
  const options = {
    onEvent: (event) => {
      if (event.type === "task") statuses.push(event.task.status);
    },
  };
  if (command.cancel) await session.cancelTask(execution.handle.taskId);
  const { outcome } = await execution.settle(options);
  const { result } = outcome;
  return {
    kind: execution.kind, status: outcome.status, statuses,
    text: result?.content[0].text, structure: result?.structuredContent, isError: result?.isError,
  };
}

const write = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

await client.connect(new StreamableHTTPClientTransport(new URL(url)));
const session = createTaskSessionFromClient(client, {
  endpointId: url,
  rawDispatch,
  v2RequestFraming: { protocolVersion: "2026-07-28", clientInfo, clientCapabilities: {} },
});
write({ revision: client.getNegotiatedProtocolVersion(), server: client.getServerVersion()?.name ?? null });
for await (const line of createInterface({ input: process.stdin })) {
  write(await call(session, JSON.parse(line)).catch((error) => ({ error: error.code, message: `${error}` })));
}
await session.close();
await client.close();
