// A firm price: both amounts of an exchange, held for a while, for one payment.

import {api, problem} from './api.js';
import {$} from './dom.js';
import {money, price, t} from './words.js';

let held; // {quote, of, until}: the price, what it is for, and when it ends by performance.now()
let offered = true; // the gateway gives firm prices
let ticking;

// of identifies what a price is for.
const of = (fields) => JSON.stringify(['sender_id', 'receiver_id', 'debit_currency', 'credit_currency', 'currency', 'amount'].map((name) => fields[name]));

const left = () => Math.ceil((held.until - performance.now()) / 1000);

// current returns the price for these fields while it holds.
export const current = (fields) => (held && fields && held.of === of(fields) && left() > 0 ? held.quote : undefined);

// isOffered says whether the gateway gives firm prices. An earlier gateway does not; then a payment
// has the price of the moment at which it is made.
export const isOffered = () => offered;

// lasts returns the milliseconds for which a price holds, by the gateway's clock. The header has only
// seconds, so the last one does not count.
function lasts(response, quote) {
  const now = Date.parse(response.headers.get('Date'));
  return Date.parse(quote.expires_at) - (Number.isNaN(now) ? Date.now() : now + 1000);
}

// ask gets a price and shows it. changed is called when it ends. ask throws a Problem if there is no
// price.
export async function ask({sender_id, receiver_id, debit_currency, credit_currency, currency, amount}, changed) {
  drop();
  const fields = {sender_id, receiver_id, debit_currency, credit_currency, currency, amount};
  const response = await api('/api/quotes', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(fields)});
  if (response.status === 405) {
    offered = false;
    return;
  }
  if (!response.ok) throw await problem(response);
  const quote = await response.json();
  held = {quote, of: of(fields), until: performance.now() + lasts(response, quote)};
  $('firm-debit').textContent = money(quote.debit_amount, quote.debit_currency);
  $('firm-credit').textContent = money(quote.credit_amount, quote.credit_currency);
  $('firm-rate').textContent = t('firm.rate_line', {currency: quote.debit_currency, amount: price(quote.rate, quote.credit_currency)});
  $('firm-spread').textContent = money(quote.spread, quote.credit_currency);
  $('firm').hidden = false;
  count(changed);
  ticking = setInterval(() => count(changed), 250);
}

// count shows how long the price holds.
function count(changed) {
  const seconds = Math.max(0, left());
  const text = seconds ? t('firm.left', {seconds}) : t('firm.over');
  if ($('firm-left').textContent !== text) $('firm-left').textContent = text;
  $('firm').classList.toggle('over', !seconds);
  if (seconds) return;
  clearInterval(ticking);
  changed();
}

// drop forgets the price.
export function drop() {
  clearInterval(ticking);
  held = undefined;
  $('firm').hidden = true;
}

// keep forgets the price unless it is for these fields.
export function keep(fields) {
  if (held && held.of !== of(fields)) drop();
}
