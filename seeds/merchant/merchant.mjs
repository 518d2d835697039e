// The program of a merchant, for Node 20 or later. It pays, is told by a webhook that the payment has
// settled, verifies the signature, refunds a part, and is told about the refund. While make run runs:
//
//   node seeds/merchant/merchant.mjs
//
// main.go is the same in Go.

import {createHmac, randomUUID, timingSafeEqual} from 'node:crypto';
import {createServer} from 'node:http';

const gateway = process.argv[2] ?? 'http://127.0.0.1:18080';
const apiKey = process.env.PGW_API_KEY;

// call sends a request. An answer of 5xx says nothing about the outcome, so the same request is sent
// again: its key makes sure that it happens once.
async function call(method, path, body) {
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      response = await fetch(gateway + path, {
        method, headers: {'Content-Type': 'application/json', ...apiKey ? {'X-API-Key': apiKey} : {}}, body: body && JSON.stringify(body),
      });
    } catch (error) { // no answer says nothing about the outcome either
      if (attempt === 30) throw error;
    }
    if (response && (response.status < 500 || attempt === 30)) {
      if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`);
      return response.status === 204 ? undefined : response.json();
    }
    await new Promise((wait) => setTimeout(wait, 1000));
  }
}

// verify checks the signature of a webhook as Standard Webhooks 1.0.0 says. The package
// standardwebhooks of npm does the same.
function verify(secret, headers, body) {
  const [id, timestamp, signatures] = ['webhook-id', 'webhook-timestamp', 'webhook-signature'].map((name) => headers[name] ?? '');
  if (!(Math.abs(Date.now() / 1000 - Number(timestamp)) < 300)) throw new Error('the timestamp is missing, or too far from now');
  const want = createHmac('sha256', Buffer.from(secret.replace(/^whsec_/, ''), 'base64')).update(`${id}.${timestamp}.`).update(body).digest();
  const valid = signatures.split(' ').some((signature) => {
    const [version, text] = signature.split(',');
    const got = Buffer.from(text ?? '', 'base64');
    return version === 'v1' && got.length === want.length && timingSafeEqual(got, want);
  });
  if (!valid) throw new Error('the signature is not valid');
}

// A webhook may come more than once, and in any order.
const seen = new Set();
const events = [];
const waiting = [];
let secret;

const server = createServer(async (request, response) => {
  const parts = [];
  for await (const part of request) parts.push(part);
  const body = Buffer.concat(parts);
  try {
    verify(secret, request.headers, body);
  } catch (error) {
    console.error(`merchant: a webhook was refused: ${error.message}`);
    response.writeHead(400).end(error.message);
    return;
  }
  const id = request.headers['webhook-id'];
  if (!seen.has(id)) {
    seen.add(id);
    events.push(JSON.parse(body));
    for (const look of waiting) look();
  }
  response.writeHead(204).end();
});

// told resolves to the event of a type about a payment.
const told = (type, key) => new Promise((resolve, reject) => {
  const late = setTimeout(() => reject(new Error(`no ${type} of ${key} has come`)), 120_000);
  const look = () => {
    const event = events.find((e) => e.type === type && e.data.idempotency_key === key);
    if (event) {
      clearTimeout(late);
      resolve(event);
    }
  };
  waiting.push(look);
  look();
});

await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
const webhook = await call('POST', '/api/webhooks', {url: `http://127.0.0.1:${server.address().port}/hooks`, types: ['payment.settled', 'payment.refunded']});
secret = webhook.secret;

process.on('SIGINT', () => call('DELETE', `/api/webhooks/${webhook.id}`).finally(() => process.exit(130)));

// The risk rules refuse a few payments at random. Such a payment is made again with a new key.
let key, paid;
do {
  key = `shop-${randomUUID()}`;
  paid = await call('POST', '/api/payments', {
    sender_id: 'ACC001', receiver_id: 'ACC002', currency: 'USD', amount: '10.00', debit_currency: 'USD', credit_currency: 'USD',
    tx_date: new Date().toISOString(), idempotency_key: key, metadata: {order: '4711'},
  });
} while (paid.reason === 'risk_random_reject');
if (paid.status === 'FAILED') throw new Error(`the payment was refused: ${paid.reason}`);
const settled = await told('payment.settled', key);
console.log(`settled: ${settled.data.currency} ${settled.data.amount} of order ${settled.data.metadata.order}`);

const refund = await call('POST', `/api/payments/${key}/refunds`, {idempotency_key: `${key}-refund-1`, amount: '4.00', reason: 'one of two was broken'});
if (refund.status === 'FAILED') throw new Error(`the refund was refused: ${refund.reason}`);
const refunded = await told('payment.refunded', key);
console.log(`refunded: ${refunded.data.refund.currency} ${refunded.data.refund.amount}`);

await call('DELETE', `/api/webhooks/${webhook.id}`);
server.closeAllConnections();
server.close();
