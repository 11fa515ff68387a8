// An MCP server that does all that a server may do, and nothing by chance. No SDK, so that fields no SDK knows are said too.
// With the argument `modern` it speaks 2026-07-28 as well.
import { createInterface } from 'node:readline';

const isModern = process.argv[2] === 'modern';
const LEVELS = ['debug', 'info', 'notice', 'warning', 'error', 'critical', 'alert', 'emergency'];
const send = (message) => process.stdout.write(`${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`);
const notify = (method, params) => send({ method, params });
const text = (value) => ({ content: [{ type: 'text', text: typeof value === 'string' ? value : JSON.stringify(value) }] });
// An answer of the client; the order of its keys is the client's business.
const told = (answer) => text(JSON.stringify(answer, (_, it) => (it && typeof it === 'object' && !Array.isArray(it) ? Object.fromEntries(Object.entries(it).sort()) : it)));
const PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';

let level = 'debug';
let next = 1;
let hasGrown = false;
const answers = new Map();
const running = new Map();
const listening = new Map();
let cancelled = 0;
const subscribed = new Set();

const info = { name: 'chatty', title: 'Chatty', version: '1.2.3', websiteUrl: 'https://example.org', icons: [{ src: 'data:,', sizes: ['48x48'] }] };
const capabilities = {
  tools: { listChanged: true }, prompts: { listChanged: true }, resources: { subscribe: true, listChanged: true }, logging: {}, completions: {},
  experimental: { 'org.example/thing': { depth: 2 } },
};

const stamp = (id) => ({ 'io.modelcontextprotocol/subscriptionId': id });

// A notification to each listener of the modern era that wants it.
function tell(what, params, wants) {
  for (const [id, filter] of listening) if (wants(filter)) notify(`notifications/${what}`, { ...params, _meta: stamp(id) });
}

class Refused extends Error {
  constructor(error) {
    super(error.message);
    this.error = error;
  }
}

// Asks the client; in the modern era by an answer that is no answer yet.
function ask(request, key, method, params) {
  if (request.modern) {
    const given = request.params.inputResponses?.[key];
    if (given) return given;
    throw { required: { [key]: { method, params } } };
  }
  const id = `chatty-${next++}`;
  send({ id, method, params });
  return new Promise((resolve, reject) => answers.set(id, { resolve, reject }));
}

async function askBoth(request) {
  const given = request.params.inputResponses;
  if (request.modern && !given) {
    throw { required: { e: { method: 'elicitation/create', params: FORM }, s: { method: 'sampling/createMessage', params: SAMPLE } } };
  }
  return [await ask(request, 'e', 'elicitation/create', FORM), await ask(request, 's', 'sampling/createMessage', SAMPLE)];
}

const FORM = {
  mode: 'form', message: 'Who?', 'org.example/unknown': [1],
  requestedSchema: { type: 'object', properties: { name: { type: 'string', title: 'Name', minLength: 1 } }, required: ['name'] },
};
const SAMPLE = {
  messages: [{ role: 'user', content: { type: 'text', text: 'Hi?' } }], maxTokens: 5, temperature: 0.5, systemPrompt: 'Be brief.',
  modelPreferences: { hints: [{ name: 'small' }], speedPriority: 1 }, tools: [{ name: 't', inputSchema: { type: 'object' } }], toolChoice: { mode: 'auto' },
};

const tools = {
  rich: {
    title: 'Rich', description: 'Every kind of content', icons: [{ src: 'data:,' }], _meta: { 'org.example/tag': { x: 1 } }, 'x-unknown': true,
    annotations: { title: 'Rich!', readOnlyHint: true, openWorldHint: false, idempotentHint: true },
    inputSchema: { type: 'object', properties: { big: { type: 'integer' }, nested: { $ref: '#/$defs/any' } }, $defs: { any: { type: 'object' } } },
    outputSchema: { type: 'object', properties: { given: { type: 'object' }, list: { type: 'array' } }, required: ['given'] },
    run: (request, given) => ({
      content: [
        { type: 'text', text: 'words', annotations: { audience: ['user'], priority: 0.3, lastModified: '2026-01-01T00:00:00Z' }, _meta: { a: 1 } },
        { type: 'image', data: PIXEL, mimeType: 'image/png' },
        { type: 'audio', data: 'UklGRg==', mimeType: 'audio/wav' },
        { type: 'resource_link', uri: 'chatty://page/1', name: 'one', title: 'One', mimeType: 'text/plain', size: 12, icons: [{ src: 'data:,' }] },
        { type: 'resource', resource: { uri: 'chatty://page/2', mimeType: 'text/plain', text: 'two', _meta: { b: 2 } } },
        { type: 'resource', resource: { uri: 'chatty://page/3', blob: 'AAEC', mimeType: 'application/octet-stream' } },
      ],
      structuredContent: { given, list: [1, 2.5, null, { deep: { deeper: '✓' } }] },
      _meta: { 'org.example/cost': 0.25 },
    }),
  },
  fail: { run: () => { throw new Refused({ code: -32050, message: 'failed on purpose', data: { why: ['a', { b: 1 }] } }); } },
  broken: { run: () => ({ ...text('it broke'), isError: true, structuredContent: { broken: true } }) },
  meta: {
    run: (request) => {
      const meta = Object.entries(request.params._meta ?? {}).filter(([key]) => key !== 'progressToken' && !key.startsWith('io.modelcontextprotocol/'));
      return text(Object.fromEntries(meta.sort()));
    },
  },
  log: {
    run: (request) => {
      const least = request.modern ? request.params._meta['io.modelcontextprotocol/logLevel'] : level;
      for (const it of LEVELS.slice(LEVELS.indexOf(least))) notify('notifications/message', { level: it, logger: 'chatty', data: { said: it } });
      return text('logged');
    },
  },
  roots: { run: async (request) => told(await ask(request, 'r', 'roots/list')) },
  elicit: { run: async (request) => told(await ask(request, 'e', 'elicitation/create', FORM)) },
  sample: { run: async (request) => told(await ask(request, 's', 'sampling/createMessage', SAMPLE)) },
  both: { run: async (request) => told(await askBoth(request)) },
  wait: {
    run: (request) => {
      notify('notifications/progress', { progressToken: request.params._meta?.progressToken, progress: 0.5, total: 3, message: 'half' });
      return new Promise(() => {});
    },
  },
  // How often, not why: the reason is the client's own and goes no further than its proxy.
  cancelled: { run: () => text(`${cancelled} cancelled`) },
  touch: {
    run: (request, { uri }) => {
      if (request.modern) tell('resources/updated', { uri }, (filter) => filter.resourceSubscriptions?.includes(uri));
      else if (subscribed.has(uri)) notify('notifications/resources/updated', { uri });
      return text('touched');
    },
  },
  grow: {
    run: (request) => {
      hasGrown = true;
      for (const list of ['tools', 'prompts', 'resources']) {
        if (request.modern) tell(`${list}/list_changed`, {}, (filter) => filter[`${list}ListChanged`]);
        else notify(`notifications/${list}/list_changed`);
      }
      return text('grown');
    },
  },
};
const ANY = { type: 'object' };
const describe = ([name, { run, ...rest }]) => ({ name, inputSchema: ANY, ...rest });
const hint = isModern ? { ttlMs: 0, cacheScope: 'private' } : {};

const methods = {
  initialize: () => ({ protocolVersion: '2025-11-25', capabilities, serverInfo: info, instructions: 'Ask about anything.\nIt talks.' }),
  ping: () => ({}),
  'tools/list': () => ({ tools: [...Object.entries(tools).map(describe), ...(hasGrown ? [{ name: 'late', inputSchema: ANY }] : [])], ...hint }),
  'tools/call': (request) => {
    const tool = tools[request.params.name];
    if (!tool) throw new Refused({ code: -32602, message: `no tool ${request.params.name}` });
    return tool.run(request, request.params.arguments ?? {});
  },
  'resources/list': () => {
    const pages = ['1', '2', ...(hasGrown ? ['late'] : [])];
    return { resources: pages.map((n) => ({ uri: `chatty://page/${n}`, name: `page ${n}`, size: 3, annotations: { priority: 1 }, _meta: { n } })), ...hint };
  },
  'resources/templates/list': () => ({ resourceTemplates: [{ uriTemplate: 'chatty://page/{n}', name: 'page', title: 'Page', mimeType: 'text/plain' }], ...hint }),
  'resources/read': ({ params: { uri } }) => {
    if (!uri.startsWith('chatty://page/')) throw new Refused({ code: -32002, message: 'no such resource', data: { uri } });
    return { contents: [{ uri, mimeType: 'text/plain', text: 'a page', _meta: { fresh: true } }], ...hint };
  },
  'resources/subscribe': ({ params }) => (subscribed.add(params.uri), {}),
  'resources/unsubscribe': ({ params }) => (subscribed.delete(params.uri), {}),
  'prompts/list': () => {
    const greet = { name: 'greet', title: 'Greet', description: 'Says hello', arguments: [{ name: 'who', title: 'Who', required: true }], icons: [{ src: 'data:,' }] };
    return { prompts: [greet, ...(hasGrown ? [{ name: 'late' }] : [])], ...hint };
  },
  'prompts/get': ({ params }) => ({
    description: 'a greeting',
    messages: [{ role: 'user', content: { type: 'text', text: `Hello ${params.arguments?.who}` } }, { role: 'assistant', content: { type: 'image', data: PIXEL, mimeType: 'image/png' } }],
    _meta: { polite: true },
  }),
  'completion/complete': ({ params }) => ({ completion: { values: ['Ana', 'Abe'].filter((it) => it.startsWith(params.argument.value)), total: 2, hasMore: false } }),
  'logging/setLevel': ({ params }) => ((level = params.level), {}),
};
if (isModern) {
  methods['server/discover'] = () => ({
    supportedVersions: ['2026-07-28'], capabilities, instructions: 'Ask about anything.\nIt talks.', ...hint, _meta: { 'io.modelcontextprotocol/serverInfo': info },
  });
}

async function answer(request) {
  const { id, method } = request;
  request.modern = Boolean(request.params?._meta?.['io.modelcontextprotocol/protocolVersion']);
  request.params ??= {};
  running.set(id, request);
  try {
    if (isModern && method === 'subscriptions/listen') {
      listening.set(id, request.params.notifications);
      notify('notifications/subscriptions/acknowledged', { notifications: request.params.notifications, _meta: stamp(id) });
      return;
    }
    if (!methods[method]) throw new Refused({ code: -32601, message: `no method ${method}` });
    const result = await methods[method](request);
    if (running.delete(id)) send({ id, result: request.modern ? { resultType: 'complete', ...result } : result });
  } catch (thrown) {
    if (!running.delete(id)) return;
    if (thrown.required) send({ id, result: { resultType: 'input_required', inputRequests: thrown.required, requestState: 'opaque' } });
    else send({ id, error: thrown.error ?? { code: -32603, message: String(thrown) } });
  }
}

createInterface({ input: process.stdin }).on('line', (line) => {
  const message = JSON.parse(line);
  if (message.method === 'notifications/cancelled') {
    if (listening.delete(message.params.requestId)) running.delete(message.params.requestId);
    else if (running.delete(message.params.requestId)) cancelled += 1;
  } else if (message.method && message.id !== undefined) {
    answer(message);
  } else if (answers.has(message.id)) {
    const { resolve, reject } = answers.get(message.id);
    answers.delete(message.id);
    if (message.error) reject(new Refused(message.error));
    else resolve(message.result);
  }
}).on('close', () => process.exit(0));
