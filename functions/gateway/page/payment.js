// One payment: sent, and followed on the same connection.

import {api, events, problem} from './api.js';

const hex = (bytes) => Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (b) => b.toString(16).padStart(2, '0')).join('');

export const newKey = () => `web-${hex(12)}`;

// newPayment returns the request. All of it is kept, so that a retry is the same request.
export function newPayment(fields) {
  return {idempotency_key: newKey(), tx_date: new Date().toISOString(), ...fields};
}

// The traces of this tab's payments, by key. The page makes the ids itself, so it need not ask for
// them.
const traces = new Map();
export const traceOf = (key) => traces.get(key);

function headers(payment, accept) {
  const trace = hex(16);
  traces.set(payment.idempotency_key, trace);
  return {'Content-Type': 'application/json', 'Accept': accept, 'traceparent': `00-${trace}-${hex(8)}-01`};
}

// send pays. It calls stage(name, ms) as each stage ends, and returns the answer: http_status,
// status, reason, ref, … When there was no answer, the reason is no_answer or problem. These two
// exist only in this page.
export async function send(payment, stage) {
  try {
    const response = await api('/api/payments', {method: 'POST', headers: headers(payment, 'text/event-stream'), body: JSON.stringify(payment)});
    if (!response.headers.get('Content-Type')?.startsWith('text/event-stream')) return await plain(response);
    for await (const {name, data} of events(response)) {
      if (name === 'stage') stage(data.stage, data.ms);
      if (name === 'answer') return data;
    }
  } catch (error) {
    return {http_status: 0, status: 'FAILED', reason: 'no_answer', message: error.message};
  }
  return {http_status: 0, status: 'FAILED', reason: 'no_answer'};
}

// sendPlain pays and waits only for the answer. It is for many payments at once.
export async function sendPlain(payment) {
  try {
    return await plain(await api('/api/payments', {method: 'POST', headers: headers(payment, 'application/json'), body: JSON.stringify(payment)}));
  } catch (error) {
    return {http_status: 0, status: 'FAILED', reason: 'no_answer', message: error.message};
  }
}

async function plain(response) {
  if (response.headers.get('Content-Type')?.startsWith('application/json')) {
    return {http_status: response.status, ...await response.json()};
  }
  return {http_status: response.status, status: 'FAILED', reason: 'problem', message: (await problem(response)).message};
}

// undecided says that nothing is final and the same request should be sent again, with the same
// key.
export const undecided = (answer) => answer.http_status === 0 || answer.http_status >= 500 || answer.http_status === 429;

// settled says that the money has moved, now or earlier.
export const settled = (answer) => answer.status === 'SUCCESS' || answer.status === 'SUCCESS_REPLAY';
