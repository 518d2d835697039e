// An account: its balances in all currencies, now or at a time, and statements.

import {api, get, problem} from '../api.js';
import {saveBlob} from '../csv.js';
import {$, make} from '../dom.js';
import {accountAt, go, paymentAt, title} from '../router.js';
import {fill, why} from '../section.js';
import {decimal, has, language, t, zonedTime} from '../words.js';

const page = 20; // entries that one request reads
const days = 30; // of a statement, unless the user chooses other ones

let shown; // the id of the account that is shown
let at; // the time of its balances; empty: now
let begun = false;
let asked; // the query of the statement that is shown
let period = {}; // the statement of the address: currency, from and to
let entries = 0;

const path = (id) => `/api/accounts/${encodeURIComponent(id)}`;

// say shows a text, or why there is none.
function say(place, text) {
  $(place).classList.toggle('problem', text instanceof Error);
  $(place).replaceChildren(...(text instanceof Error ? why(text, t('pay.no_account')) : [text]));
}

// balancesOf returns the balances. An earlier gateway knows only rupiah.
const balancesOf = (account) => account.balances ?? [{currency: 'IDR', available: String(account.balance_idr), held: ''}];

function draw(account) {
  const balances = balancesOf(account);
  const limit = (text) => (text === undefined ? '–' : Number(text) ? decimal(text) : t('account.no_limit'));
  $('account-balances').hidden = false;
  $('account-past').hidden = true;
  const cell = (label, text) => make('td', {'data-label': t(`account.${label}`)}, text);
  $('account-balances').tBodies[0].replaceChildren(...balances.map((b) => make('tr', {},
    make('th', {scope: 'row'}, b.currency), cell('available', decimal(b.available)), cell('held', b.held ? decimal(b.held) : '–'),
    cell('limit', limit(b.daily_limit)), cell('spent', b.spent_today ? decimal(b.spent_today) : '–'))));
  const codes = balances.map((b) => b.currency);
  const select = $('statement-currency');
  if ([...select.options].map((o) => o.value).join() === codes.join()) return;
  const chosen = select.value;
  select.replaceChildren(...codes.map((code) => make('option', {value: code}, code)));
  select.value = codes.includes(chosen) ? chosen : codes.includes('IDR') ? 'IDR' : codes[0];
}

// drawPast shows what was booked before a time. Holds and limits of the past are not known.
function drawPast(account) {
  $('account-balances').hidden = true;
  $('account-past').hidden = false;
  $('account-past').tBodies[0].replaceChildren(...account.balances.map((b) => make('tr', {}, make('th', {scope: 'row'}, b.currency), make('td', {}, decimal(b.balance)))));
}

// refresh reads the balances of the account that is shown again.
export function refresh() {
  if (!shown) return undefined;
  const [id, when] = [shown, at];
  return fill($('account'), async () => {
    const now = await get(path(id));
    return {now, past: when && await get(`${path(id)}?${new URLSearchParams({at: when})}`)};
  }, ({now, past}) => {
    draw(now);
    if (past) drawPast(past);
    $('account-state').className = `state ${now.status === 'BLOCKED' ? 'bad' : 'good'}`;
    $('account-state').textContent = t(now.status === 'BLOCKED' ? 'account.blocked' : 'account.active');
    return past ? t('account.shown_at', {account: id, time: zonedTime(past.at)}) : t('account.shown', {account: id});
  }, t('pay.no_account'));
}

function hideStatement() {
  asked = undefined;
  $('statement').hidden = $('statement-more').hidden = true;
  say('statement-said', '');
}

const midnight = (day, later = 0) => {
  const at = new Date(`${day}T00:00`);
  at.setDate(at.getDate() + later);
  return at.toISOString();
};

// query returns which statement the form asks for. Its last day is included.
function query() {
  const wanted = new URLSearchParams({currency: $('statement-currency').value});
  if ($('statement-from').value) wanted.set('from', midnight($('statement-from').value));
  if ($('statement-to').value) wanted.set('to', midnight($('statement-to').value, 1));
  return wanted;
}

// here is the address of the account and the statement of the form.
function here() {
  const wanted = new URLSearchParams({...at && {at}, currency: $('statement-currency').value});
  for (const name of ['from', 'to']) {
    if ($(`statement-${name}`).value) wanted.set(name, $(`statement-${name}`).value);
  }
  return `${accountAt(shown)}?${wanted}`;
}

// readPeriod shows the statement of the address, when the account's currencies are known.
function readPeriod() {
  const select = $('statement-currency');
  if (!period.currency || !select.options.length) return undefined;
  if (![...select.options].some((o) => o.value === period.currency)) select.append(make('option', {value: period.currency}, period.currency));
  select.value = period.currency;
  $('statement-from').value = period.from;
  $('statement-to').value = period.to;
  asked = query();
  return read(asked);
}

const balanceRow = (label, balance) => make('tr', {class: 'total'}, make('th', {scope: 'row'}, label), make('td'), make('td', {}, decimal(balance)));

const ofPayments = new Set(['payment', 'exchange', 'spread', 'residue']);

// entryKind names what an entry is for. An entry of a payment links to it.
function entryKind(e) {
  const text = has(`kind.${e.kind}`) ? t(`kind.${e.kind}`) : e.kind;
  return make('small', {}, ofPayments.has(e.kind) && e.transaction_id ? make('a', {href: paymentAt(e.transaction_id)}, text) : text);
}

const entryRow = (e) => make('tr', {}, make('th', {scope: 'row'}, make('time', {datetime: e.booked_at}, zonedTime(e.booked_at)),
  entryKind(e)),
make('td', {class: e.amount.startsWith('-') ? 'less' : 'more'}, decimal(e.amount)), make('td', {}, decimal(e.balance)));

// read reads a page of the statement and adds it to the table.
async function read(wanted, cursor) {
  const request = new URLSearchParams(wanted);
  request.set('limit', page);
  if (cursor) request.set('cursor', cursor);
  try {
    const got = await get(`${path(shown)}/statement?${request}`);
    if (wanted !== asked) return; // another statement has been asked for meanwhile
    const rows = $('statement').tBodies[0];
    if (cursor) rows.lastChild.remove();
    else rows.replaceChildren(balanceRow(t('statement.opening'), got.opening_balance));
    entries = (cursor ? entries : 0) + got.entries.length;
    const added = got.entries.map(entryRow);
    rows.append(...added, balanceRow(t(got.next_cursor ? 'statement.so_far' : 'statement.closing'), got.closing_balance));
    $('statement').hidden = false;
    $('statement-more').hidden = !got.next_cursor;
    $('statement-more').dataset.cursor = got.next_cursor ?? '';
    say('statement-said', entries ? t(entries === 1 ? 'statement.count_one' : 'statement.count', {n: entries}) : t('statement.none'));
  } catch (error) {
    if (wanted === asked) say('statement-said', error);
  }
}

// exportCSV saves the whole statement as a file. The request needs the key, so a link would not do.
async function exportCSV() {
  const wanted = query();
  wanted.set('format', 'csv');
  try {
    const response = await api(`${path(shown)}/statement?${wanted}`, {headers: {Accept: 'text/csv'}});
    if (!response.ok) throw await problem(response);
    saveBlob(`statement-${shown.replace(/[^\w.-]+/g, '_')}-${wanted.get('currency')}.csv`, await response.blob());
    say('statement-said', t('statement.exported'));
  } catch (error) {
    say('statement-said', error);
  }
}

function begin() {
  const from = new Date();
  from.setDate(from.getDate() - days);
  $('statement-from').value = from.toLocaleDateString('sv'); // the form of a date field
  for (const id of ['statement-from', 'statement-to', 'account-at']) $(id).lang = language;
  $('account-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const [id, when] = [$('account-id').value.trim(), $('account-at').value];
    if (id) go(accountAt(id) + (when ? `?${new URLSearchParams({at: new Date(when).toISOString()})}` : ''));
  });
  $('statement-form').addEventListener('submit', (event) => {
    event.preventDefault();
    go(here()).then((moved) => moved || readPeriod());
  });
  $('statement-more').addEventListener('click', () => read(asked, $('statement-more').dataset.cursor));
  $('statement-csv').addEventListener('click', exportCSV);
}

export function show(id, wanted) {
  if (!begun) begin();
  begun = true;
  if (id !== shown || !wanted.has('currency')) hideStatement();
  shown = id;
  at = wanted.get('at') ?? '';
  period = Object.fromEntries(['currency', 'from', 'to'].map((name) => [name, wanted.get(name) ?? '']));
  $('account-id').value = id;
  $('account-at').value = Number.isNaN(Date.parse(at)) ? '' : new Date(at).toLocaleString('sv').replace(' ', 'T').slice(0, 16);
  $('account').hidden = !id;
  $('account').querySelector('.body').hidden = true;
  $('account-payments').href = `/payments?${new URLSearchParams({account: id})}`;
  $('account-heading').textContent = id || t('account.heading');
  if (id) title(id);
  return refresh()?.then(readPeriod);
}
