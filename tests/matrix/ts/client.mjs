// The official TypeScript SDKs as clients of the matrix: one process, many connections, a line of JSON for everything.
//
//     node client.mjs sdk|client FOLDER      1.x (`@modelcontextprotocol/sdk`) or 2.x (`@modelcontextprotocol/client`)
//
// Commands on stdin have `id` and `do`, and get `{id, result}` or `{id, error}`; whatever a connection sees comes in
// between as `{connection, heard | asked | wire}`. `tests/matrix/node.py` is the other side and says what each means.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [generation, folder, answersText] = process.argv.slice(2);
const require = createRequire(`${folder}/node_modules/`);
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const answers = JSON.parse(answersText);
const MODERN = "2026-07-28";
const CAPABILITIES = { elicitation: { form: {}, url: {} }, sampling: { tools: {} }, roots: { listChanged: true } };
const FUNCTIONS = {
  "tools/list": "listTools", "tools/call": "callTool", "prompts/list": "listPrompts", "prompts/get": "getPrompt",
  "resources/list": "listResources", "resources/templates/list": "listResourceTemplates",
  "resources/read": "readResource", "resources/subscribe": "subscribeResource",
  "resources/unsubscribe": "unsubscribeResource", "completion/complete": "complete",
};
const connections = new Map();
const stops = new Map();
const subscriptions = new Map();

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

// What the two generations of the SDK call by different names.
const sdk = generation === "sdk" ? await first() : await second();

async function first() {
  const [{ Client }, { StreamableHTTPClientTransport }, { SSEClientTransport }, types] = await Promise.all([
    load("@modelcontextprotocol/sdk/client/index.js"), load("@modelcontextprotocol/sdk/client/streamableHttp.js"),
    load("@modelcontextprotocol/sdk/client/sse.js"), load("@modelcontextprotocol/sdk/types.js"),
  ]);
  const requests = {
    "elicitation/create": types.ElicitRequestSchema, "sampling/createMessage": types.CreateMessageRequestSchema,
    "roots/list": types.ListRootsRequestSchema,
  };
  return {
    transports: { mcp: StreamableHTTPClientTransport, sse: SSEClientTransport },
    client: () => new Client({ name: "matrix", version: "1" }, { capabilities: CAPABILITIES }),
    handle: (client, method, answer) => client.setRequestHandler(requests[method], answer),
    call: (client, name, params, options) =>
      name === "callTool" ? client.callTool(params, undefined, options) : client[name](params, options),
  };
}

async function second() {
  const { Client, StreamableHTTPClientTransport, SSEClientTransport } = await load("@modelcontextprotocol/client");
  return {
    transports: { mcp: StreamableHTTPClientTransport, sse: SSEClientTransport },
    client: (revision) => new Client({ name: "matrix", version: "1" }, {
      capabilities: CAPABILITIES,
      versionNegotiation: { mode: revision === MODERN ? { pin: MODERN } : "legacy" },
    }),
    handle: (client, method, answer) => client.setRequestHandler(method, answer),
    call: (client, name, params, options) => client[name](params, options),
  };
}

// A transport whose messages are seen, and whose `initialize` asks for one revision.
function watched(transport, connection, revision) {
  const send = transport.send.bind(transport);
  transport.send = (message, options) => {
    if (message.method === "initialize") message.params.protocolVersion = revision;
    say({ connection, wire: ["out", message] });
    return send(message, options);
  };
  let taken;
  Object.defineProperty(transport, "onmessage", {
    get: () => taken,
    set: (take) => {
      taken = take && ((message, extra) => {
        say({ connection, wire: ["in", message] });
        take(message, extra);
      });
    },
  });
  return transport;
}

const commands = {
  async connect({ connection, url, face, token, revision }) {
    const client = sdk.client(revision);
    const ask = (method, answer) =>
      sdk.handle(client, method, (request) => {
        say({ connection, asked: { method, params: request.params ?? {} } });
        return answer(request.params);
      });
    ask("elicitation/create", (params) => (params.mode === "url" ? answers.seen : answers.accepted));
    ask("sampling/createMessage", (params) => (params.tools ? answers.used : answers.said));
    ask("roots/list", () => answers.roots);
    client.fallbackNotificationHandler = async (heard) => say({ connection, heard });
    const options = { requestInit: { headers: { Authorization: `Bearer ${token}` } } };
    await client.connect(watched(new sdk.transports[face](new URL(url), options), connection, revision));
    connections.set(connection, client);
    return { capabilities: client.getServerCapabilities() };
  },
  async ask({ id, connection, method, params, progress }) {
    const stop = new AbortController();
    stops.set(id, stop);
    const options = { signal: stop.signal };
    if (progress) options.onprogress = (params) => say({ connection, heard: { method: "reported", params } });
    const client = connections.get(connection);
    try {
      if (method === "ping") return await client.ping(options);
      if (method === "logging/setLevel") return await client.setLoggingLevel(params.level, options);
      return await sdk.call(client, FUNCTIONS[method], params, options);
    } finally {
      stops.delete(id);
    }
  },
  async stop({ ask }) {
    stops.get(ask)?.abort("the test gives up");
    return {};
  },
  async listen({ id, connection, wanted }) {
    const subscription = await connections.get(connection).listen(wanted);
    subscriptions.set(id, subscription);
    return subscription.honoredFilter;
  },
  async unlisten({ listen }) {
    await subscriptions.get(listen).close();
    return {};
  },
  async close({ connection }) {
    const client = connections.get(connection);
    connections.delete(connection);
    if (client.transport?.terminateSession && client.transport.sessionId) await client.transport.terminateSession();
    await client.close();
    return {};
  },
};

createInterface({ input: process.stdin })
  .on("line", async (line) => {
    const command = JSON.parse(line);
    try {
      say({ id: command.id, result: (await commands[command.do](command)) ?? {} });
    } catch (error) {
      const { code, data } = error;
      say({ id: command.id, error: { code: Number.isInteger(code) ? code : null, message: String(error), data } });
    }
  })
  .on("close", () => process.exit(0));
