// A server on Node: what it needs of the kernel (JIT, WebAssembly, workers, /proc), and a few attempts by its own APIs.
// One line of JSON per attempt, as probe.py.
const fs = require('fs'), os = require('os'), net = require('net'), http = require('http');
const { execFileSync } = require('child_process');
const { Worker } = require('worker_threads');
const say = (name, verdict, detail) => console.log(JSON.stringify([name, verdict, String(detail).slice(0, 200)]));
const attempt = async (name, run) => {
  try { const got = await run(); say(name, got ? 'LEAK' : 'blocked', got); } catch (e) { say(name, 'blocked', e.code || e); }
};
const use = async (name, run) => {
  try { const got = await run(); say(name, got ? 'works' : 'BROKEN', got); } catch (e) { say(name, 'BROKEN', e); }
};
const { CODE, SECRET, SIBLING, PORT, SOCKET, HOME } = process.env;
const connects = (options) => new Promise((yes, no) => {
  const socket = net.connect(options, () => { socket.destroy(); yes('connected'); }).on('error', no);
});
const fib = (n) => (n < 2 ? n : fib(n - 1) + fib(n - 2));
const ADD = Uint8Array.from([0, 97, 115, 109, 1, 0, 0, 0, 1, 7, 1, 96, 2, 127, 127, 1, 127, 3, 2, 1, 0, 7, 7, 1, 3, 97, 100, 100, 0, 0, 10, 9, 1, 7, 0, 32, 0, 32, 1, 106, 11]);
(async () => {
  for (const path of ['/etc/shadow', SECRET, SIBLING, '/proc/1/environ', '/proc/1/root' + SECRET]) {
    await attempt('node: read ' + path, () => fs.readFileSync(path));
  }
  for (const path of [CODE + '/probe.js', '/usr/bin/env', '/etc/passwd']) {
    await attempt('node: append to ' + path, () => fs.openSync(path, 'a'));
  }
  await attempt('node: the host\'s loopback', () => connects({ port: +PORT, host: '127.0.0.1' }));
  await attempt('node: the host\'s path socket', () => connects({ path: SOCKET }));
  await attempt('node: interfaces', () => Object.keys(os.networkInterfaces()).filter((n) => n !== 'lo').join());
  await attempt('node: kill init', () => process.kill(1, 0));
  await attempt('node: the host\'s name', () => os.hostname() !== 'jail');
  await use('node: JIT', () => fib(25) === 75025);
  await use('node: WebAssembly', async () => (await WebAssembly.instantiate(ADD)).instance.exports.add(2, 3) === 5);
  await use('node: workers', () => new Promise((yes, no) => {
    const shared = new Int32Array(new SharedArrayBuffer(4));
    new Worker('require("worker_threads").workerData[0] = 7', { eval: true, workerData: shared })
      .on('exit', () => yes(shared[0] === 7)).on('error', no);
  }));
  await use('node: child process', () => execFileSync(process.execPath, ['-p', '6*7']).toString() === '42\n');
  await use('node: files', async () => { await fs.promises.writeFile(HOME + '/n', 'x'); return fs.readFileSync(HOME + '/n').length; });
  await use('node: crypto', () => require('crypto').scryptSync('a', 'b', 32).length);
  await use('node: /proc', () => process.memoryUsage().rss > 0 && os.cpus().length > 0);
  await use('node: its own server and fetch', async () => {
    const server = http.createServer((_, answer) => answer.end('hello'));
    await new Promise((yes, no) => server.on('error', no).listen(0, '127.0.0.1', yes));
    const text = await (await fetch('http://127.0.0.1:' + server.address().port)).text();
    server.close();
    return text === 'hello';
  });
  say('end', 'works', '');
})();
