// What can be done after a payment: refund it, capture or void its hold, cancel it.

import {api, problem} from './api.js';
import {$, make} from './dom.js';
import {kind as look, words} from './outcome.js';
import {newKey, settled, undecided} from './payment.js';
import {paymentAt} from './router.js';
import {stateOf} from './record.js';
import {decimal, money, t, zonedTime} from './words.js';

// The operations: the path of each, its words, and whether it takes an amount or a reason.
const operations = {
  refund: {path: 'refunds', label: 'op.refund', text: 'op.refund_text', done: 'op.refund_done', amount: true, reason: true},
  capture: {path: 'capture', label: 'op.capture', text: 'op.capture_text', done: 'op.capture_done', amount: true, reason: false},
  void: {path: 'void', label: 'op.void', text: 'op.void_text', done: 'op.void_done', amount: false, reason: true},
  cancel: {path: 'cancel', label: 'op.cancel', text: 'op.cancel_text', done: 'op.cancel_done', amount: false, reason: true},
};

let chosen; // {p, name, key, refresh}, while the dialog is open

// possible returns the names of the operations that fit the payment's state. The ledger decides all the
// same.
function possible(p) {
  if (p.payment_key || p.idempotency_key.startsWith('wallet:')) return [];
  if (p.state === 'PENDING') return p.authorized ? ['capture', 'void', 'cancel'] : ['cancel'];
  const left = minor(p.debit_amount) - minor(p.refunded) - minor(p.refunding);
  return p.state === 'COMMITTED' && left > 0n ? ['refund'] : [];
}

// minor returns a decimal text as a whole number of minor units. All amounts of one payment have the
// same number of digits.
const minor = (text) => BigInt((text ?? '0').replace('.', ''));

const list = (...pairs) => make('dl', {class: 'facts'}, ...pairs.filter(([, value]) => value).flatMap(([label, value]) => [make('dt', {}, label), make('dd', {}, value)]));

// card returns the section of a payment, or nothing if there is nothing to tell or to do. refresh reads
// the payment again.
export function card(p, refresh) {
  const names = possible(p);
  const paid = (text) => text && money(text, p.debit_currency);
  const facts = list([t('op.authorized'), paid(p.authorized)], [t('op.expires'), p.expires_at && zonedTime(p.expires_at)], [t('op.captured'), paid(p.captured)],
    [t('op.refunded'), paid(p.refunded)], [t('op.refunding'), paid(p.refunding)],
    [t('op.payment'), p.payment_key && make('a', {href: paymentAt(p.payment_key)}, p.payment_key)], [t('op.note'), p.note]);
  if (!names.length && !facts.children.length) return [];
  return [make('section', {class: 'card', id: 'afterwards'}, make('h2', {}, t('op.heading')), ...facts.children.length ? [facts] : [],
    ...p.refunds?.length ? [refunds(p)] : [],
    ...names.length ? [make('div', {class: 'inline'}, ...names.map((name) => make('button', {type: 'button', class: 'quiet', 'data-op': name, onclick: () => choose(p, name, refresh)}, t(operations[name].label))))] : [])];
}

function refunds(p) {
  return make('table', {class: 'grid'}, make('caption', {}, t('op.refunds')),
    make('thead', {}, make('tr', {}, ...['op.key', 'op.amount', 'op.state', 'op.note'].map((key) => make('th', {scope: 'col'}, t(key))))),
    make('tbody', {}, ...p.refunds.map((r) => make('tr', {}, make('th', {scope: 'row'}, make('a', {href: paymentAt(r.idempotency_key)}, r.idempotency_key)),
      make('td', {}, money(r.amount, r.currency)), make('td', {}, t(`state.${stateOf(r)}`)), make('td', {}, r.note ?? '–')))));
}

function choose(p, name, refresh) {
  chosen = {p, name, key: newKey(), refresh};
  const operation = operations[name];
  const left = name === 'refund' ? rest(p) : p.authorized;
  $('op-heading').textContent = t(operation.label);
  $('op-text').textContent = t(operation.text);
  $('op-said').textContent = '';
  $('op-amount').value = $('op-reason').value = '';
  $('op-amount-label').textContent = t('op.amount_in', {currency: p.debit_currency});
  $('op-amount').placeholder = left ? decimal(left) : '';
  $('op-amount').parentElement.hidden = !operation.amount;
  $('op-reason').parentElement.hidden = !operation.reason;
  $('op').showModal();
}

// rest returns what is left of a payment, as a decimal text.
function rest(p) {
  const digits = (p.debit_amount.split('.')[1] ?? '').length;
  const text = String(minor(p.debit_amount) - minor(p.refunded) - minor(p.refunding)).padStart(digits + 1, '0');
  return digits ? `${text.slice(0, -digits)}.${text.slice(-digits)}` : text;
}

// send asks for the operation, and returns the answer in the form of a payment's.
async function send({p, name, key}) {
  const body = {idempotency_key: key};
  if (operations[name].amount && $('op-amount').value.trim()) body.amount = $('op-amount').value.trim();
  if (operations[name].reason && $('op-reason').value.trim()) body.reason = $('op-reason').value.trim();
  try {
    // The ref names the payment of another client, too.
    const response = await api(`/api/payments/${encodeURIComponent(p.ref || p.idempotency_key)}/${operations[name].path}`, {
      method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body),
    });
    if (response.headers.get('Content-Type')?.startsWith('application/json')) return {http_status: response.status, ...await response.json()};
    return {http_status: response.status, status: 'FAILED', reason: 'problem', message: (await problem(response)).message};
  } catch (error) {
    return {http_status: 0, status: 'FAILED', reason: 'no_answer', message: error.message};
  }
}

async function act(button) {
  if (button.getAttribute('aria-disabled') === 'true') return;
  button.setAttribute('aria-disabled', 'true');
  const {p, name, refresh} = chosen;
  const answer = await send(chosen);
  button.removeAttribute('aria-disabled');
  const said = words(answer);
  const title = settled(answer) ? t(operations[name].done) : answer.reason === 'insufficient_funds' ? t('op.no_funds') : said.title;
  if (!settled(answer)) {
    $('op-said').textContent = [title, answer.reason !== 'problem' && answer.message].filter(Boolean).join(' ');
    // The same key stays while the outcome is open: the operation then happens at most once.
    if (!undecided(answer)) chosen.key = newKey();
    return;
  }
  $('op').close();
  $('record-again').className = `outcome ${look(answer)}`;
  const back = answer.refund && t('op.gave', {amount: money(answer.refund.amount, answer.refund.currency), account: p.sender_id});
  $('record-again').replaceChildren(make('p', {class: 'title'}, title), ...back ? [make('p', {}, back)] : [],
    make('code', {}, [answer.http_status, answer.status, answer.reason].filter(Boolean).join(' · ')));
  refresh();
}

export function begin() {
  $('op-form').addEventListener('submit', (event) => {
    event.preventDefault();
    act($('op-do'));
  });
  $('op-close').addEventListener('click', () => $('op').close());
}
