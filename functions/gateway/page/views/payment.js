// One payment, as the ledger has it.

import * as afterwards from '../afterwards.js';
import {get} from '../api.js';
import {$, make} from '../dom.js';
import {barsOf, waterfall} from '../journey.js';
import {kind, traceLink, words} from '../outcome.js';
import {sendPlain} from '../payment.js';
import {amountOf, got, look, sent, stateOf} from '../record.js';
import {accountAt, title} from '../router.js';
import {fill, say} from '../section.js';
import {between, decimal, duration, has, money, price, rupiah, t, zonedTime} from '../words.js';

let shown = '';
let drawn = '';

const list = (...pairs) => make('dl', {class: 'facts'}, ...pairs.filter(([, value]) => value).flatMap(([label, value]) => [make('dt', {}, label), make('dd', {}, value)]));
const code = (text) => text && make('code', {}, text);
// traced returns the trace: a link if a tracing UI is configured, or else the id to copy.
function traced(p) {
  const link = traceLink(p.idempotency_key, t('detail.open_trace'), p.trace_id);
  if (link || !p.trace_id) return link;
  const copy = async (event) => {
    const button = event.currentTarget;
    await navigator.clipboard.writeText(p.trace_id);
    button.textContent = t('detail.copied');
  };
  // A browser has no clipboard for a page that is neither on this machine nor behind TLS.
  return make('span', {class: 'copied'}, code(p.trace_id), navigator.clipboard && make('button', {type: 'button', class: 'quiet', onclick: copy}, t('detail.copy')));
}

const account = (id) => make('a', {href: accountAt(id)}, id);
const card = (heading, ...parts) => make('section', {class: 'card'}, make('h2', {}, heading), ...parts);

// bars returns the stages of the payment. Another tab's payment has only the ledger's times.
function bars(p) {
  const known = barsOf(p.idempotency_key);
  if (known.length) return known;
  const at = [p.accepted_at, p.reserved_at, p.decided_at];
  const first = at.find(Boolean);
  return [['way', 'kafka'], ['ledger', 'ledger']].flatMap(([name, who], i) => (at[i] && at[i + 1]
    ? [{label: t(`part.${name}`), text: t(`part.${name}_text`), who, from: Math.max(0, between(first, at[i])), ms: Math.max(0, between(at[i], at[i + 1]))}] : []));
}

// requestOf returns the request that made the payment, or undefined if the ledger does not keep
// enough of it.
function requestOf(p) {
  if (!p.amount || p.payment_key || (p.kind && p.kind !== 'payment')) return undefined;
  const inRupiah = p.debit_currency === 'IDR' && p.credit_currency === 'IDR';
  return {
    idempotency_key: p.idempotency_key, sender_id: p.sender_id, receiver_id: p.receiver_id, currency: p.currency, amount: p.amount,
    tx_date: p.tx_date || new Date().toISOString(), ...inRupiah && !p.quote_id ? {} : {debit_currency: p.debit_currency, credit_currency: p.credit_currency},
    ...p.quote_id ? {quote_id: p.quote_id} : {}, ...p.metadata ? {metadata: p.metadata} : {}, ...p.authorized ? {capture: 'manual'} : {},
  };
}

async function again(button, request) {
  if (button.getAttribute('aria-disabled') === 'true') return;
  button.setAttribute('aria-disabled', 'true');
  const answer = await sendPlain(request);
  const said = words(answer);
  $('record-again').className = `outcome ${kind(answer)}`;
  $('record-again').replaceChildren(make('p', {class: 'title'}, said.title), make('p', {}, said.text),
    make('code', {}, [answer.http_status || '', answer.status, answer.reason].filter(Boolean).join(' · ')));
  button.removeAttribute('aria-disabled');
  refresh();
}

function parts(p) {
  const state = stateOf(p);
  const said = p.reason ? words(p) : {title: t(`state.${state}`), text: ''};
  const times = [['detail.accepted', p.accepted_at], ['detail.reserved', p.reserved_at], ['detail.decided', p.decided_at]].filter(([, when]) => when);
  const stages = bars(p);
  const request = requestOf(p);
  const rate = (value) => t('firm.rate_line', {currency: p.debit_currency, amount: price(value, p.credit_currency)});
  return [
    make('div', {class: `outcome ${look[state]}`}, make('p', {class: 'title'}, said.title), make('p', {}, p.status ? said.text : '')),
    ...afterwards.card(p, refresh),
    card(t('detail.times'), ...stages.length ? [waterfall(stages)] : [], make('ol', {class: 'times'}, ...times.map(([label, when], i) => make('li', {},
      make('span', {}, t(label)), make('time', {datetime: when}, zonedTime(when)),
      make('small', {}, i ? t('detail.after', {ms: duration(Math.max(0, between(times[i - 1][1], when)))}) : '')))),
    list([t('detail.deadline'), !p.decided_at && p.deadline && zonedTime(p.deadline)], [t('detail.trace'), traced(p)])),
    card(t('detail.amounts'), list([t('detail.from'), account(p.sender_id)], [t('detail.to'), account(p.receiver_id)],
      [t('detail.amount'), p.amount && money(p.amount, p.currency)], [t('detail.amount_idr'), p.amount_idr && p.currency !== 'IDR' && rupiah(p.amount_idr)],
      [t('firm.debit'), p.exchange && sent(p)], [t('firm.credit'), p.exchange && got(p)],
      [t('detail.rate'), p.exchange ? rate(p.exchange.rate) : p.rate && p.rate_time && price(p.rate)], [t('detail.mid_rate'), p.exchange && rate(p.exchange.mid_rate)],
      [t('firm.spread'), p.exchange && money(p.exchange.spread, p.credit_currency)], [t('detail.rate_time'), p.rate_time && zonedTime(p.rate_time)],
      [t('detail.rate_id'), p.rate_time && code(p.rate_id)], [t('detail.quote'), code(p.quote_id)], [t('detail.rule_set'), code(p.rule_set)]),
    ...p.exchange?.steps?.length ? [make('table', {class: 'grid'}, make('caption', {}, t('detail.steps')),
      make('thead', {}, make('tr', {}, ...['detail.step', 'detail.rate', 'detail.mid_rate'].map((key) => make('th', {scope: 'col'}, t(key))))),
      make('tbody', {}, ...p.exchange.steps.map((s) => make('tr', {}, make('th', {scope: 'row'}, `${s.from_currency} → ${s.to_currency}${s.inverse ? ' (÷)' : ''}`),
        make('td', {}, decimal(s.rate)), make('td', {}, decimal(s.mid_rate))))))] : []),
    ...p.entries?.length ? [card(t('detail.entries'), make('ul', {class: 'entries'}, ...p.entries.map((e) => make('li', {},
      account(e.account_id), make('small', {}, has(`kind.${e.kind}`) ? t(`kind.${e.kind}`) : e.kind), make('b', {}, money(e.amount, e.currency))))))] : [],
    card(t('detail.ids'), list([t('detail.key'), code(p.idempotency_key)], [t('detail.ref'), code(p.ref)], ...(p.events ?? []).map((e) => [e.type, code(e.id)]))),
    ...request ? [card(t('next.same'), make('p', {class: 'hint'}, t('next.same_text')), make('button', {type: 'button', class: 'quiet', onclick: (event) => again(event.currentTarget, request)}, t('next.again')))] : [],
    make('details', {}, make('summary', {}, t('detail.raw')), make('pre', {tabindex: '0'}, JSON.stringify(p, null, 2))),
  ];
}

export function refresh() {
  const key = shown;
  return fill($('record'), () => get(`/api/payments/${encodeURIComponent(key)}`), (p) => {
    const now = JSON.stringify(p);
    if (now === drawn) return;
    drawn = now;
    const heading = t(p.payment_key ? 'op.refund_heading' : 'detail.heading', {amount: amountOf(p)});
    $('record-heading').textContent = heading;
    title(heading);
    $('record-body').replaceChildren(...parts(p));
  }, t('detail.absent', {key}));
}

let begun = false;

export function show(id) {
  if (!begun) afterwards.begin();
  begun = true;
  shown = id;
  drawn = '';
  $('record').querySelector('.body').hidden = true;
  $('record-heading').textContent = t('view.payment');
  $('record-again').replaceChildren();
  $('record-again').className = '';
  say($('record').querySelector('.said'), '');
  return refresh();
}
