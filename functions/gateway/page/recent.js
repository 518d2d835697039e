// Recent payments, from the ledger.

import {get} from './api.js';
import {$, make} from './dom.js';
import {traceLink, words} from './outcome.js';
import {between, duration, exactTime, has, money, price, rupiah, t, time} from './words.js';

const page = 10;
let shown = []; // payments on the page
let next; // where older payments begin
let filter = {};
const rows = new Map(); // the drawn rows, by reference

const at = (p) => p.accepted_at ?? p.reserved_at;

async function read(before) {
  const query = new URLSearchParams({limit: page, ...filter});
  if (before) query.set('before', before);
  return get(`/api/payments?${query}`);
}

// refresh reads the newest page again. Older payments that are shown stay as they are.
export async function refresh() {
  const mine = filter;
  const got = await read();
  if (mine !== filter) return;
  if (shown.length <= page) {
    shown = got.payments;
    next = got.next_before;
  } else {
    const fresh = new Map(got.payments.map((p) => [p.ref, p]));
    shown = [...got.payments, ...shown.filter((p) => !fresh.has(p.ref))];
  }
  draw(got.search_limit);
}

async function older() {
  const mine = filter;
  $('older').hidden = true; // until the next position is known
  const got = await read(next);
  if (mine !== filter) return;
  const first = shown.length;
  const known = new Set(shown.map((p) => p.ref));
  shown = [...shown, ...got.payments.filter((p) => !known.has(p.ref))];
  next = got.next_before;
  draw(got.search_limit);
  $('payments').querySelectorAll('[data-ref]')[first]?.focus();
}

function draw(limit) {
  $('older').hidden = !next;
  const count = shown.length === 0 && !next ? t('recent.none')
    : next && shown.length % page !== 0 || shown.length === 0 ? t('recent.searched', {n: shown.length, limit: limit.toLocaleString(document.documentElement.lang)})
      : t('recent.count', {n: shown.length});
  if ($('recent-count').textContent !== count) $('recent-count').textContent = count;

  // A row that has not changed stays in its place, so that it does not move while the user presses
  // it.
  const list = $('payments');
  const elements = shown.map(rowOf);
  elements.forEach((element, i) => {
    if (list.children[i] !== element) list.insertBefore(element, list.children[i] ?? null);
  });
  while (list.children.length > elements.length) list.lastChild.remove();
}

function rowOf(p) {
  const now = JSON.stringify(p);
  const known = rows.get(p.ref);
  if (known?.now === now) return known.element;
  const element = row(p);
  rows.set(p.ref, {now, element});
  return element;
}

const stateOf = (p) => p.status ?? 'PENDING';
const look = {SUCCESS: 'good', FAILED: 'bad', PENDING: 'open'};
const sent = (p) => money(p.debit_amount, p.debit_currency);
const got = (p) => money(p.credit_amount, p.credit_currency);
// amountOf returns what was sent, or what the client asked for.
const amountOf = (p) => (p.exchange ? sent(p) : p.amount ? money(p.amount, p.currency) : rupiah(p.amount_idr));

const rateLine = (p, rate) => t('firm.rate_line', {currency: p.debit_currency, amount: price(rate, p.credit_currency)});

function row(p) {
  const state = stateOf(p);
  return make('li', {}, make('button', {type: 'button', 'data-ref': p.ref, onclick: () => open(p)},
    make('time', {datetime: at(p)}, time(at(p))),
    make('span', {class: 'who'}, p.sender_id, ' ', make('span', {class: 'arrow'}, make('span', {class: 'unseen'}, t('recent.to')), make('span', {'aria-hidden': 'true'}, '→')), ' ', p.receiver_id),
    make('span', {class: 'amount'}, amountOf(p), p.exchange ? make('small', {}, t('recent.received', {amount: got(p)})) : p.amount_idr && p.currency !== 'IDR' ? make('small', {}, rupiah(p.amount_idr)) : null),
    make('span', {class: `state ${look[state]}`}, t(`state.${state}`), p.status === 'FAILED' ? make('small', {}, words(p).title) : null)));
}

// openKey shows the ledger's record for a key.
export async function openKey(payment) {
  try {
    await open(await get(`/api/payments/${encodeURIComponent(payment.idempotency_key)}`));
  } catch (error) {
    await open({...payment, reason: 'queue_timeout', at: payment.tx_date, message: error.message});
  }
}

async function open(p) {
  let all = p;
  if (!p.events) {
    try {
      all = await get(`/api/payments/${encodeURIComponent(p.idempotency_key)}`);
    } catch {
      // The dialog shows the payment as the list has it.
    }
  }
  $('detail-heading').textContent = t('detail.heading', {amount: amountOf(all)});
  $('detail-body').replaceChildren(...detail(all));
  if (!$('detail').open) $('detail').showModal();
  $('detail-heading').focus();
}

function detail(p) {
  const list = (...pairs) => make('dl', {class: 'facts'}, ...pairs.filter(([, value]) => value).flatMap(([label, value]) => [make('dt', {}, label), make('dd', {}, value)]));
  const code = (text) => text && make('code', {}, text);
  const state = stateOf(p);
  const said = p.reason ? words(p) : {title: t(`state.${state}`), text: ''};
  const times = [['detail.accepted', p.accepted_at], ['detail.reserved', p.reserved_at], ['detail.decided', p.decided_at]].filter(([, when]) => when);
  const trace = traceLink(p.idempotency_key, t('detail.open_trace'));
  return [
    make('div', {class: `outcome ${look[state]}`}, make('p', {class: 'title'}, said.title),
      make('p', {}, p.status ? said.text : p.message ?? '')),
    list([t('detail.from'), p.sender_id], [t('detail.to'), p.receiver_id],
      [t('detail.amount'), p.amount && money(p.amount, p.currency)], [t('detail.amount_idr'), p.amount_idr && rupiah(p.amount_idr)],
      [t('detail.rate'), !p.exchange && p.rate && p.rate_time && price(p.rate)], [t('detail.rate_time'), p.rate_time && exactTime(p.rate_time)]),
    ...p.exchange ? [make('h3', {}, t('detail.exchange')), list([t('firm.debit'), sent(p)], [t('firm.credit'), got(p)],
      [t('firm.rate'), rateLine(p, p.exchange.rate)], [t('detail.mid_rate'), rateLine(p, p.exchange.mid_rate)],
      [t('firm.spread'), money(p.exchange.spread, p.credit_currency)], [t('detail.quote'), code(p.quote_id)])] : [],
    ...p.entries?.length ? [make('h3', {}, t('detail.entries')), make('ul', {class: 'entries'}, ...p.entries.map((e) => make('li', {},
      make('span', {}, e.account_id), make('small', {}, has(`kind.${e.kind}`) ? t(`kind.${e.kind}`) : e.kind), make('b', {}, money(e.amount, e.currency)))))] : [],
    ...times.length ? [make('h3', {}, t('detail.times')), make('ol', {class: 'times'}, ...times.map(([label, when], i) => make('li', {},
      make('span', {}, t(label)), make('time', {datetime: when}, exactTime(when)),
      make('small', {}, i ? t('detail.after', {ms: duration(Math.max(0, between(times[i - 1][1], when)))}) : ''))))] : [],
    list([t('detail.key'), code(p.idempotency_key)], [t('detail.ref'), code(p.ref)], [t('detail.rule_set'), code(p.rule_set)],
      [t('detail.deadline'), !p.decided_at && p.deadline && exactTime(p.deadline)], [t('detail.trace'), trace]),
    ...p.events ? [make('h3', {}, t('detail.events')), make('dl', {class: 'facts'}, ...p.events.flatMap((e) => [make('dt', {}, e.type), make('dd', {}, code(e.id))]))] : [],
    make('details', {}, make('summary', {}, t('detail.raw')), make('pre', {tabindex: '0'}, JSON.stringify(p, null, 2))),
  ];
}

// begin connects the filter and the buttons.
export function begin() {
  const apply = () => {
    filter = Object.fromEntries([...new FormData($('filter'))].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value));
    shown = [];
    rows.clear();
    $('older').hidden = true;
    return refresh();
  };
  $('filter').addEventListener('submit', (event) => {
    event.preventDefault();
    apply();
  });
  $('filter-status').addEventListener('change', apply);
  $('older').addEventListener('click', older);
}
