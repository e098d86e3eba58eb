// The same agent as client.py, on the official TypeScript client (npm `@modelcontextprotocol/client`), which is in the
// directory that MCP_NODE_CLIENT names.
//
//     client.mjs legacy|auto stdio PROGRAM ARGUMENT...
//     client.mjs legacy|auto http URL [TOKEN]

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const required = createRequire(`${process.env.MCP_NODE_CLIENT}/`);
const { Client, StreamableHTTPClientTransport } = required("@modelcontextprotocol/client");
const { StdioClientTransport } = required("@modelcontextprotocol/client/stdio");

const [mode, kind, ...rest] = process.argv.slice(2);

function transport() {
  if (kind === "stdio") {
    const [command, ...args] = rest;
    return new StdioClientTransport({ command, args, env: process.env });
  }
  const [url, token] = rest;
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } });
}

const client = new Client({ name: "agent", version: "1" }, { versionNegotiation: { mode } });

async function call(command) {
  const stages = [];
  const options = { signal: undefined };
  if (command.progress) options.onprogress = (it) => stages.push([it.progress, it.message]);
  if (command.cancel_after) options.signal = AbortSignal.timeout(command.cancel_after * 1000);
  try {
    const result = await client.callTool({ name: command.call, arguments: command.arguments ?? {} }, options);
    return {
      text: result.content[0].text, structure: result.structuredContent, isError: result.isError ?? false, progress: stages,
    };
  } catch (error) {
    if (options.signal?.aborted) return { cancelled: true };
    throw error;
  }
}

async function answer(command) {
  try {
    return command.list ? { tools: (await client.listTools()).tools } : await call(command);
  } catch (error) {
    return { error: error.code, message: error.message };
  }
}

const write = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

await client.connect(transport());
write({ revision: client.getNegotiatedProtocolVersion?.() ?? null, server: client.getServerVersion()?.name ?? null });
for await (const line of createInterface({ input: process.stdin })) write(await answer(JSON.parse(line)));
await client.close();
