// An account: its balances in all currencies, and statements.

import {api, get, problem} from './api.js';
import {$, make} from './dom.js';
import {decimal, exactTime, has, language, t} from './words.js';

const page = 20; // entries that one request reads
const days = 30; // of a statement, unless the user chooses other ones
const saving = 60_000; // ms that the browser has to save a file

let shown; // the id of the account that is shown
let asked; // the query of the statement that is shown
let entries = 0;

const path = (id) => `/api/accounts/${encodeURIComponent(id)}`;

// say shows a text, or the message of an error.
function say(place, text) {
  $(place).classList.toggle('problem', text instanceof Error);
  $(place).textContent = text instanceof Error ? (text.status === 404 ? t('pay.no_account') : text.status ? text.message : t('problem.connection')) : text;
}

async function show(id) {
  shown = undefined;
  hideStatement();
  $('account-body').hidden = true;
  if (!id) return;
  try {
    const got = await get(path(id));
    shown = id;
    draw(got);
    $('account-body').hidden = false;
    say('account-said', t('account.shown', {account: id}) + (got.status === 'BLOCKED' ? ` · ${t('pay.blocked')}` : ''));
  } catch (error) {
    say('account-said', error);
  }
}

// balancesOf returns the balances. An earlier gateway knows only rupiah.
const balancesOf = (account) => account.balances ?? [{currency: 'IDR', available: String(account.balance_idr), held: ''}];

function draw(account) {
  const balances = balancesOf(account);
  $('account-balances').tBodies[0].replaceChildren(...balances.map((b) => make('tr', {},
    make('th', {scope: 'row'}, b.currency), make('td', {}, decimal(b.available)), make('td', {}, b.held ? decimal(b.held) : '–'))));
  const codes = balances.map((b) => b.currency);
  const select = $('statement-currency');
  if ([...select.options].map((o) => o.value).join() === codes.join()) return;
  const chosen = select.value;
  select.replaceChildren(...codes.map((code) => make('option', {value: code}, code)));
  select.value = codes.includes(chosen) ? chosen : codes.includes('IDR') ? 'IDR' : codes[0];
}

// refresh reads the balances of the account that is shown again.
export async function refresh() {
  const id = shown;
  if (!id) return;
  const got = await get(path(id));
  if (id === shown) draw(got);
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

const balanceRow = (label, balance) => make('tr', {class: 'total'}, make('th', {scope: 'row'}, label), make('td'), make('td', {}, decimal(balance)));

const entryRow = (e) => make('tr', {}, make('th', {scope: 'row'}, make('time', {datetime: e.booked_at}, exactTime(e.booked_at)),
  make('small', {}, has(`kind.${e.kind}`) ? t(`kind.${e.kind}`) : e.kind)),
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
    say('statement-said', entries ? t('statement.count', {n: entries}) : t('statement.none'));
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
    const url = URL.createObjectURL(await response.blob());
    make('a', {href: url, download: `statement-${shown.replace(/[^\w.-]+/g, '_')}-${wanted.get('currency')}.csv`}).click();
    setTimeout(() => URL.revokeObjectURL(url), saving);
    say('statement-said', t('statement.exported'));
  } catch (error) {
    say('statement-said', error);
  }
}

// begin connects the forms. account returns the account to propose.
export function begin(account) {
  const from = new Date();
  from.setDate(from.getDate() - days);
  $('statement-from').value = from.toLocaleDateString('sv'); // the form of a date field
  for (const id of ['statement-from', 'statement-to']) $(id).lang = language;
  $('account-id').value = account();
  $('account-form').addEventListener('submit', (event) => {
    event.preventDefault();
    show($('account-id').value.trim());
  });
  $('statement-form').addEventListener('submit', (event) => {
    event.preventDefault();
    asked = query();
    read(asked);
  });
  $('statement-more').addEventListener('click', () => read(asked, $('statement-more').dataset.cursor));
  $('statement-csv').addEventListener('click', exportCSV);
}
