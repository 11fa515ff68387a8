// Seals and opens one entry of the vault with another implementation: HPKE of @hpke/core, the rest of Node.js itself.
// Written from the format alone (vault/src/entry.rs says it in words); a JSON question on stdin, a JSON answer on stdout.
//   entry.mjs FOLDER_WITH_NODE_MODULES
import { createCipheriv, createDecipheriv, createHash, createPrivateKey, createPublicKey, randomBytes, sign, verify } from 'node:crypto';
import { createRequire } from 'node:module';
import { resolve } from 'node:path';

const require = createRequire(resolve(process.argv[2], 'package.json'));
const { Aes256Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } = require('@hpke/core');

const suite = new CipherSuite({ kem: new DhkemX25519HkdfSha256(), kdf: new HkdfSha256(), aead: new Aes256Gcm() });
const purpose = (name) => `claudemesh/vault/v1/${name}`;
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

function framed(purpose, fields) {
  return Buffer.concat([purpose, ...fields].flatMap((field) => {
    const bytes = Buffer.from(field, 'utf8');
    const length = Buffer.alloc(8);
    length.writeBigUInt64BE(BigInt(bytes.length));
    return [length, bytes];
  }));
}

const fieldsOf = (mesh, entry) =>
  [mesh, entry.owner, entry.key, `${entry.version}`, entry.kind, `${entry.created_ms}`];
const contentFrame = (mesh, entry) => framed(purpose('content'), fieldsOf(mesh, entry));
const wrapFrame = (mesh, entry, kid) =>
  framed(purpose('wrap'), [...fieldsOf(mesh, entry), kid, sha256(entry.content)]);
const statement = (mesh, entry) =>
  `${purpose('entry')}\n${sha256(framed(purpose('entry'), [...fieldsOf(mesh, entry), sha256(entry.content)]))}`;
const keyId = (publicKey) => sha256(publicKey).slice(0, 16);

// As an ArrayBuffer of its own, which is what @hpke/core takes.
const buffer = (bytes) => new Uint8Array(bytes).buffer;
const info = buffer(Buffer.from(purpose('wrap')));
const NONCE = Buffer.alloc(12);

async function open({ mesh, entry, private_key }) {
  const owner = createPublicKey({
    key: { kty: 'OKP', crv: 'Ed25519', x: Buffer.from(entry.owner, 'hex').toString('base64url') },
    format: 'jwk',
  });
  if (!verify(null, Buffer.from(statement(mesh, entry)), owner, Buffer.from(entry.signature, 'hex'))) {
    throw new Error('the signature does not match');
  }
  const recipientKey = await suite.kem.importKey('raw', buffer(Buffer.from(private_key, 'hex')), false);
  const sealed = Buffer.from(entry.wrap.sealed, 'base64');
  const contentKey = await suite.open(
    { recipientKey, enc: buffer(sealed.subarray(0, 32)), info },
    buffer(sealed.subarray(32)),
    buffer(wrapFrame(mesh, entry, entry.wrap.kid)),
  );
  const content = Buffer.from(entry.content, 'base64');
  const cipher = createDecipheriv('aes-256-gcm', Buffer.from(contentKey), NONCE);
  cipher.setAAD(contentFrame(mesh, entry));
  cipher.setAuthTag(content.subarray(-16));
  const plain = Buffer.concat([cipher.update(content.subarray(0, -16)), cipher.final()]);
  return { plain: plain.toString('base64') };
}

async function seal({ mesh, seed, key, version, kind, created_ms, public_key, plain }) {
  const pkcs8 = Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), Buffer.from(seed, 'hex')]);
  const signer = createPrivateKey({ key: pkcs8, format: 'der', type: 'pkcs8' });
  const owner = Buffer.from(createPublicKey(signer).export({ format: 'jwk' }).x, 'base64url').toString('hex');
  const entry = { owner, key, version, kind, created_ms };

  const contentKey = randomBytes(32);
  const cipher = createCipheriv('aes-256-gcm', contentKey, NONCE);
  cipher.setAAD(contentFrame(mesh, entry));
  const content = [cipher.update(Buffer.from(plain, 'base64')), cipher.final()];
  entry.content = Buffer.concat([...content, cipher.getAuthTag()]).toString('base64');

  const to = Buffer.from(public_key, 'hex');
  const kid = keyId(to);
  const recipientPublicKey = await suite.kem.deserializePublicKey(buffer(to));
  const { enc, ct } =
    await suite.seal({ recipientPublicKey, info }, buffer(contentKey), buffer(wrapFrame(mesh, entry, kid)));
  entry.wrap = { kid, sealed: Buffer.concat([Buffer.from(enc), Buffer.from(ct)]).toString('base64') };
  entry.signature = sign(null, Buffer.from(statement(mesh, entry)), signer).toString('hex');
  return { entry };
}

let text = '';
for await (const chunk of process.stdin) text += chunk;
const question = JSON.parse(text);
const answer = await ({ open, seal })[question.do](question);
process.stdout.write(JSON.stringify(answer));
