// The page: a form, the stages of a payment, example cases, live figures and recent payments.

import * as cases from './cases.js';
import {$} from './dom.js';
import * as form from './form.js';
import * as journey from './journey.js';
import * as live from './live.js';
import * as outcome from './outcome.js';
import * as panels from './panels.js';
import {newPayment, send, settled, undecided} from './payment.js';
import * as recent from './recent.js';

const every = 5000; // ms between two reads of balances, price and payments

let last; // the newest payment of this tab that was settled

// pay sends one payment, shows its stages and outcome, and returns the answer.
async function pay(payment) {
  if (form.isBusy()) return null;
  form.busy(true);
  journey.begin();
  outcome.showRequest(payment);
  const accounts = [payment.sender_id, payment.receiver_id];
  const before = await form.balances(...accounts);
  const answer = await send(payment, journey.stage);
  journey.end();
  if (settled(answer)) last = payment;
  outcome.show(payment, answer, {again: () => pay(payment), detail: () => recent.openKey(payment)});
  form.busy(false);
  // A decided payment needs its key no more. An undecided one keeps its key, so that a second try
  // cannot pay twice.
  if (payment.idempotency_key === $('idempotency').value && !undecided(answer) && answer.http_status !== 400) form.renewKey();
  outcome.showBalances(before, await form.balances(...accounts));
  look();
  return answer;
}

// look reads again what other clients may have changed.
function look() {
  return Promise.allSettled([form.refresh(), recent.refresh()]);
}

$('pay').addEventListener('submit', async (event) => {
  event.preventDefault();
  const fields = form.isBusy() ? null : form.read();
  if (!fields) return;
  const answer = await pay(newPayment(fields));
  if (answer?.http_status === 400) form.explain(answer.message);
});

journey.show();
recent.begin();
cases.begin({pay, last: () => last, changed: look});
live.begin();
panels.begin();
await form.begin();
await look();
document.documentElement.dataset.ready = 'true';
setInterval(() => {
  if (document.visibilityState === 'visible') look();
}, every);
