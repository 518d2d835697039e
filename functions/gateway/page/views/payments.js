// Payments: searched and filtered, a page at a time. The address holds the filter and the page.

import {get} from '../api.js';
import {save} from '../csv.js';
import {$, make} from '../dom.js';
import {alsoAmount, amountOf, begunAt, look, refusal, stateOf} from '../record.js';
import {go, paymentAt} from '../router.js';
import {fill, say, why} from '../section.js';
import {number, t, zonedTime} from '../words.js';

const page = 25;
const most = 1000; // payments in one file
const texts = ['account', 'status', 'currency', 'min_amount', 'max_amount'];
const times = ['from', 'to'];

let wanted = new URLSearchParams(); // the filter and the page that are shown
let begun = false;

// local returns a time as a field for date and time has it, in the reader's zone.
const local = (at) => (Number.isNaN(Date.parse(at)) ? '' : new Date(at).toLocaleString('sv').replace(' ', 'T').slice(0, 16));

const read = (query, limit) => get(`/api/payments?${new URLSearchParams([...query, ['limit', limit]])}`);

function addressOf(query) {
  return query.size ? `/payments?${query}` : '/payments';
}

function row(p) {
  const [also, why] = [alsoAmount(p), refusal(p)];
  return make('tr', {},
    make('th', {scope: 'row'}, make('a', {href: paymentAt(p.idempotency_key)}, make('time', {datetime: begunAt(p)}, zonedTime(begunAt(p)))), make('code', {}, p.idempotency_key),
      p.payment_key && make('small', {}, `${t('kind.refund')}: ${p.payment_key}`)),
    make('td', {'data-label': t('detail.from')}, p.sender_id), make('td', {'data-label': t('detail.to')}, p.receiver_id),
    make('td', {'data-label': t('pay.amount'), class: 'amount'}, amountOf(p), also && make('small', {}, also)),
    make('td', {'data-label': t('recent.status')}, make('span', {class: `state ${look[stateOf(p)]}`}, t(`state.${stateOf(p)}`), why && make('small', {}, why))));
}

let drawn = '';
export function refresh() {
  const query = wanted;
  return fill($('list'), () => read(query, page), (got) => {
    const older = new URLSearchParams(query);
    older.set('before', got.next_before ?? '');
    $('list-older').hidden = !got.next_before;
    $('list-older').href = addressOf(older);
    const newest = new URLSearchParams(query);
    newest.delete('before');
    $('list-newest').hidden = !query.has('before');
    $('list-newest').href = addressOf(newest);
    const now = JSON.stringify(got.payments);
    if (now !== drawn || !$('list-table').tBodies[0].rows.length) $('list-table').tBodies[0].replaceChildren(...got.payments.map(row));
    drawn = now;
    $('list-table').hidden = got.payments.length === 0;
    if (got.next_before && got.payments.length < page) return t('recent.searched', {n: got.payments.length, limit: number(got.search_limit ?? page)});
    return got.payments.length ? t('recent.count', {n: got.payments.length}) : t('list.none');
  });
}

function readForm() {
  const query = new URLSearchParams();
  for (const name of texts) if ($(`list-${name}`).value.trim()) query.set(name, $(`list-${name}`).value.trim());
  for (const name of times) if ($(`list-${name}`).value) query.set(name, new Date($(`list-${name}`).value).toISOString());
  return query;
}

// exportCSV saves the payments of the filter, from the newest on, and says how many they are.
async function exportCSV() {
  const query = new URLSearchParams(wanted);
  query.delete('before');
  let found = [];
  try {
    for (let more = true; more && found.length < most;) {
      say($('list-exported'), t('list.exporting', {n: number(found.length)}));
      const got = await read(query, 100);
      found = [...found, ...got.payments];
      more = Boolean(got.next_before);
      if (more) query.set('before', got.next_before);
      else query.delete('before');
    }
    const columns = ['idempotency_key', 'ref', 'accepted_at', 'reserved_at', 'decided_at', 'sender_id', 'receiver_id', 'currency', 'amount', 'debit_currency', 'debit_amount',
      'credit_currency', 'credit_amount', 'state', 'status', 'reason', 'payment_key'];
    save('payments.csv', [columns, ...found.map((p) => columns.map((name) => p[name] ?? ''))]);
    say($('list-exported'), t(query.has('before') ? 'list.exported_some' : found.length === 1 ? 'list.exported_one' : 'list.exported', {n: number(found.length)}));
  } catch (error) {
    say($('list-exported'), ...why(error));
  }
}

function begin() {
  $('find-form').addEventListener('submit', (event) => {
    event.preventDefault();
    if ($('find-key').value.trim()) go(paymentAt($('find-key').value.trim()));
  });
  $('list-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const [from, to] = times.map((name) => $(`list-${name}`).value);
    const problem = from && to && from >= to ? t('list.times_wrong')
      : ($('list-min_amount').value || $('list-max_amount').value) && !$('list-currency').value.trim() ? t('list.currency_missing') : '';
    $('list-problem').textContent = problem;
    if (!problem) go(addressOf(readForm()));
  });
  $('list-form').addEventListener('reset', () => go('/payments'));
  $('list-csv').addEventListener('click', exportCSV);
}

export function show(id, query) {
  if (!begun) begin();
  begun = true;
  wanted = query;
  for (const name of texts) $(`list-${name}`).value = query.get(name) ?? '';
  for (const name of times) $(`list-${name}`).value = local(query.get(name));
  $('list').querySelector('.body').hidden = true;
  say($('list-exported'), '');
  $('list-problem').textContent = '';
  return refresh();
}
