// The page: a form, the stages of a payment, example cases, live figures, accounts and recent
// payments.

import * as account from './account.js';
import * as cases from './cases.js';
import {$} from './dom.js';
import * as firm from './firm.js';
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
  const before = await form.moved(payment);
  const answer = await send(payment, journey.stage);
  journey.end();
  if (settled(answer)) last = payment;
  if (payment.quote_id && !undecided(answer)) firm.drop(); // a price is for one payment
  outcome.show(payment, answer, {again: () => pay(payment), detail: () => recent.openKey(payment)});
  form.busy(false);
  // A decided payment needs its key no more. An undecided one keeps its key, so that a second try
  // cannot pay twice.
  if (payment.idempotency_key === $('idempotency').value && !undecided(answer) && answer.http_status !== 400) form.renewKey();
  outcome.showBalances(before, await form.moved(payment));
  look();
  return answer;
}

// look reads again what other clients may have changed.
function look() {
  return Promise.allSettled([form.refresh(), recent.refresh(), account.refresh()]);
}

$('pay').addEventListener('submit', async (event) => {
  event.preventDefault();
  const fields = form.isBusy() ? null : form.read();
  if (!fields) return;
  if (form.needsPrice()) {
    await form.askPrice(fields);
    return;
  }
  const price = form.firmPrice();
  const answer = await pay(newPayment(price ? {...fields, quote_id: price.quote_id} : fields));
  if (answer?.http_status === 400) form.explain(answer.message);
});

journey.show();
recent.begin();
cases.begin({pay, last: () => last, changed: look});
live.begin();
panels.begin();
await form.begin();
account.begin(() => form.parties().sender_id);
await look();
document.documentElement.dataset.ready = 'true';
setInterval(() => {
  if (document.visibilityState === 'visible') look();
}, every);
