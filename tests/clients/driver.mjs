// Drives one MCP server over stdio with an official TypeScript client and writes down all that the client saw.
//
//   node driver.mjs FOLDER SDK MODE SCENARIO COMMAND...
//   FOLDER: where node_modules is. SDK: v1 or v2. MODE (v2 only): legacy or auto. SCENARIO: a key of steps.json.
//
// The same steps as driver.py. Writes a JSON array of {step, ...what was seen} to stdout.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const [folder, sdk, mode, scenario, command, ...args] = process.argv.slice(2);
const load = createRequire(join(folder, 'package.json'));
const steps = JSON.parse(readFileSync(new URL('steps.json', import.meta.url), 'utf8'))[scenario];
const capabilities = { roots: { listChanged: true }, sampling: { tools: {} }, elicitation: { form: {}, url: {} } };
const who = { name: 'driver', version: '1' };
const PATIENCE = 60_000;

let client, transport, onRequest, onNotice, isModern;
if (sdk === 'v1') {
  const { Client } = load('@modelcontextprotocol/sdk/client/index.js');
  const { StdioClientTransport } = load('@modelcontextprotocol/sdk/client/stdio.js');
  const types = load('@modelcontextprotocol/sdk/types.js');
  client = new Client(who, { capabilities });
  transport = new StdioClientTransport({ command, args, env: process.env, stderr: 'inherit' });
  const request = { 'elicitation/create': types.ElicitRequestSchema, 'sampling/createMessage': types.CreateMessageRequestSchema, 'roots/list': types.ListRootsRequestSchema };
  const notice = {
    'notifications/message': types.LoggingMessageNotificationSchema,
    'notifications/resources/updated': types.ResourceUpdatedNotificationSchema,
    'notifications/tools/list_changed': types.ToolListChangedNotificationSchema,
    'notifications/prompts/list_changed': types.PromptListChangedNotificationSchema,
    'notifications/resources/list_changed': types.ResourceListChangedNotificationSchema,
  };
  onRequest = (method, act) => client.setRequestHandler(request[method], act);
  onNotice = (method, act) => client.setNotificationHandler(notice[method], act);
} else {
  const { Client } = load('@modelcontextprotocol/client');
  const { StdioClientTransport } = load('@modelcontextprotocol/client/stdio');
  client = new Client(who, { capabilities, versionNegotiation: { mode } });
  transport = new StdioClientTransport({ command, args, env: process.env, stderr: 'inherit' });
  onRequest = (method, act) => client.setRequestHandler(method, act);
  onNotice = (method, act) => client.setNotificationHandler(method, act);
}

// What the server asks is written down, and answered as the step says.
let asked = [];
let answer = 'accept';
const say = (method, params) => {
  asked.push({ method, params });
  if (answer === 'refuse') throw Object.assign(new Error('the user refused'), { code: -1 });
};
onRequest('elicitation/create', ({ method, params }) => {
  say(method, params);
  const properties = params.requestedSchema?.properties;
  return answer === 'accept' && properties ? { action: answer, content: { name: 'Ana' } } : { action: answer };
});
onRequest('sampling/createMessage', ({ method, params }) => {
  say(method, params);
  return { model: 'stand-in', role: 'assistant', stopReason: 'endTurn', content: { type: 'text', text: 'hi' } };
});
onRequest('roots/list', ({ method, params }) => {
  say(method, params);
  return { roots: [{ uri: 'file:///work', name: 'work' }, { uri: 'file:///other' }] };
});

// Notices are kept until a step waits for them.
const notices = [];
let wake = () => {};
for (const method of ['message', 'resources/updated', 'tools/list_changed', 'prompts/list_changed', 'resources/list_changed']) {
  onNotice(`notifications/${method}`, ({ params }) => {
    notices.push({ method, params });
    wake();
  });
}
async function noticed(wanted) {
  const end = Date.now() + PATIENCE;
  for (;;) {
    const at = notices.findIndex(wanted);
    if (at >= 0) return notices.splice(at, 1)[0];
    const left = end - Date.now();
    if (left <= 0) throw new Error(`no such notice; seen: ${JSON.stringify(notices)}`);
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, left);
      wake = () => (clearTimeout(timer), resolve());
    });
  }
}

const lists = {
  tools: async () => (await client.listTools()).tools,
  resources: async () => (await client.listResources()).resources,
  templates: async () => (await client.listResourceTemplates()).resourceTemplates,
  prompts: async () => (await client.listPrompts()).prompts,
};
const call = (name, args, options) => client.callTool({ name, arguments: args }, ...(sdk === 'v1' ? [undefined, options] : [options]));

const acts = {
  call,
  read: (uri) => client.readResource({ uri }),
  prompt: (name, args) => client.getPrompt({ name, arguments: args }),
  complete: (ref, argument, context) => client.complete({ ref, argument, ...(context && { context: { arguments: context } }) }),
  // Keys in _meta that nobody knows must arrive.
  meta: (name, args) => {
    const _meta = { 'org.example/trace': { id: 7 }, traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01' };
    return client.callTool({ name, arguments: args, _meta });
  },
  progress: async (name, args) => {
    const seen = [];
    const result = await call(name, args, { onprogress: (progress) => seen.push(progress) });
    // The last one and the result may be read at once, and then this client drops it.
    return { seen: seen.filter(({ progress, total }) => progress !== total), result };
  },
  cancel: async (name, args) => {
    const stop = new AbortController();
    const seen = [];
    const onprogress = (progress) => {
      if (seen.length === 0) seen.push(progress);
      stop.abort('enough');
    };
    try {
      return { seen, result: await call(name, args, { signal: stop.signal, onprogress }) };
    } catch (error) {
      return { seen, error: said(error) };
    }
  },
  ask: async (name, args, how) => {
    answer = how;
    asked = [];
    try {
      const result = await call(name, args);
      return { asked, result };
    } catch (error) {
      return { asked, error: said(error) };
    }
  },
  // What a call logs at this level. In the modern era the level belongs to the request.
  logs: async (name, args, level) => {
    notices.length = 0;
    if (isModern) {
      await client.callTool({ name, arguments: args, _meta: { 'io.modelcontextprotocol/logLevel': level } });
    } else {
      await client.setLoggingLevel(level);
      await call(name, args);
    }
    // The last one is always sent; what was to come before it has come.
    const seen = [];
    do seen.push((await noticed(({ method }) => method === 'message')).params);
    while (seen.at(-1).level !== 'emergency');
    return seen;
  },
  updates: async (uri, name, args) => {
    const listening = isModern ? await client.listen({ resourceSubscriptions: [uri] }) : await client.subscribeResource({ uri });
    await call(name, args);
    const seen = await noticed(({ method, params }) => method === 'resources/updated' && params.uri === uri);
    await call(name, args);
    await (isModern ? listening.close() : client.unsubscribeResource({ uri }));
    return { uri: seen.params.uri };
  },
  // A call after which lists are longer: each is announced, and then holds more.
  grows: async (name, args, which) => {
    const before = {};
    for (const list of which) before[list] = (await lists[list]()).length;
    for (let at = notices.length - 1; at >= 0; at--) if (notices[at].method.endsWith('list_changed')) notices.splice(at, 1);
    const listening = isModern && (await client.listen({ toolsListChanged: true, promptsListChanged: true, resourcesListChanged: true }));
    const result = await call(name, args);
    const after = {};
    for (const list of which) {
      while ((after[list] = await lists[list]()).length === before[list]) await noticed(({ method }) => method === `${list}/list_changed`);
    }
    if (listening) await listening.close();
    return { result, after };
  },
};

// What a caller can tell apart. The SDK puts its own words before the server's.
function said(error) {
  const message = String(error.message ?? error).replace(/^MCP error -?\d+: /, '');
  return { code: error.code, message, data: error.data };
}

await client.connect(transport);
isModern = sdk === 'v2' && client.getProtocolEra() === 'modern';
const seen = [
  { step: 'server', info: client.getServerVersion(), instructions: client.getInstructions(), capabilities: client.getServerCapabilities() },
];
for (const list of Object.keys(lists)) seen.push({ step: list, result: await lists[list]() });
for (const [act, ...rest] of steps) {
  const step = JSON.stringify([act, ...rest]);
  try {
    seen.push({ step, result: await acts[act](...rest) });
  } catch (error) {
    seen.push({ step, error: said(error) });
  }
}
process.stdout.write(JSON.stringify(seen));
await client.close();
