// Try it: a form, the stages of a payment, example cases and the newest payments.

import * as cases from '../cases.js';
import {$} from '../dom.js';
import * as firm from '../firm.js';
import * as form from '../form.js';
import * as journey from '../journey.js';
import * as outcome from '../outcome.js';
import * as panels from '../panels.js';
import {newPayment, send, settled, undecided} from '../payment.js';
import * as recent from '../recent.js';
import {go, paymentAt} from '../router.js';

let begun = false;
let last; // the newest payment of this tab that was settled

// pay sends one payment, shows its stages and outcome, and returns the answer.
async function pay(payment) {
  if (form.isBusy()) return null;
  form.busy(true);
  journey.begin(payment.idempotency_key);
  outcome.showRequest(payment);
  const before = await form.moved(payment);
  const answer = await send(payment, journey.stage);
  journey.end();
  if (settled(answer)) last = payment;
  if (payment.quote_id && !undecided(answer)) firm.drop(); // a price is for one payment
  outcome.show(payment, answer, {again: () => pay(payment), detail: () => go(paymentAt(payment.idempotency_key))});
  form.busy(false);
  // A decided payment needs its key no more. An undecided one keeps its key, so that a second try
  // cannot pay twice.
  if (payment.idempotency_key === $('idempotency').value && !undecided(answer) && answer.http_status !== 400) form.renewKey();
  outcome.showBalances(before, await form.moved(payment));
  refresh();
  return answer;
}

// refresh reads again what other clients may have changed.
export function refresh() {
  return Promise.allSettled([form.refresh(), recent.refresh()]);
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

// show fills in the form when the view is opened first. What the user has filled in stays.
export async function show() {
  if (!begun) {
    begun = true;
    journey.show();
    cases.begin({pay, last: () => last, changed: refresh});
    panels.begin();
    await Promise.all([form.begin(), recent.refresh()]);
  }
  await refresh();
}
