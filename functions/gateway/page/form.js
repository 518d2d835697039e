// The payment form: accounts with their balances, the amount, and its value in rupiah.

import {get, Problem} from './api.js';
import {$, make} from './dom.js';
import {newKey} from './payment.js';
import {currencyName, language, money, price, rupiah, t, time} from './words.js';

const fields = {sender_id: 'sender', receiver_id: 'receiver', amount: 'amount', currency: 'currency', idempotency_key: 'idempotency'};
const digitsOf = {}; // decimal places of each currency that has a rate
const pause = 250; // ms after the last key press

const value = (id) => $(id).value.trim();

// complain shows a problem at its field. Without text it removes the problem.
function complain(id, text = '') {
  $(`${id}-problem`).textContent = text;
  if (text) $(id).setAttribute('aria-invalid', 'true');
  else $(id).removeAttribute('aria-invalid');
}

// readAmount returns the decimal in the API's form, or the problem with it. It refuses numbers that
// people of two countries would read differently.
function readAmount(text, currency) {
  if (!text) return {problem: t('problem.missing')};
  if (!/^\d+([.,]\d+)*$/.test(text)) return {problem: t('problem.amount')};
  const digits = digitsOf[currency] ?? 2;
  const [whole, ...rest] = text.split(/[.,]/);
  const own = rest.length === 1 && (text.includes(',') ? language === 'id' : language === 'en');
  if (rest.length > 1 || (rest.length === 1 && rest[0].length === 3 && !(digits === 3 && own))) return {problem: t('problem.separators')};
  const fraction = rest[0] ?? '';
  if (fraction.length > digits) return {problem: t('problem.digits', {currency, digits})};
  if (!/[1-9]/.test(text)) return {problem: t('problem.positive')};
  return {amount: fraction ? `${whole}.${fraction}` : whole};
}

// read returns the payment that is filled in. If a field is wrong, it focuses the first such field
// and returns null.
export function read() {
  const currency = value('currency');
  const {amount, problem} = readAmount(value('amount'), currency);
  complain('amount', problem);
  complain('currency');
  for (const id of ['sender', 'receiver', 'idempotency']) complain(id, value(id) ? '' : t('problem.missing'));
  const wrong = $('pay').querySelector('[aria-invalid]');
  if (wrong) {
    wrong.focus();
    return null;
  }
  return {sender_id: value('sender'), receiver_id: value('receiver'), currency, amount, idempotency_key: value('idempotency')};
}

export const parties = () => ({sender_id: value('sender'), receiver_id: value('receiver')});

// explain shows the gateway's message about a field at that field.
export function explain(message) {
  const id = fields[/^\w+/.exec(message ?? '')?.[0]];
  if (!id) return;
  complain(id, t('problem.request', {text: message}));
  $(id).focus();
}

export function renewKey() {
  $('idempotency').value = newKey();
  complain('idempotency');
}

export function busy(is) {
  $('send').setAttribute('aria-disabled', String(is));
  showSend(is);
}

export const isBusy = () => $('send').getAttribute('aria-disabled') === 'true';

function showSend(sending) {
  const currency = value('currency');
  const {amount} = readAmount(value('amount'), currency);
  $('send').textContent = sending ? t('pay.sending') : amount ? t('pay.send_amount', {amount: money(amount, currency, digitsOf[currency])}) : t('pay.send');
}

// balances reads the accounts' balances: {id: rupiah}. It leaves out accounts that could not be
// read.
export async function balances(...ids) {
  const read = await Promise.allSettled([...new Set(ids)].map((id) => get(`/api/accounts/${encodeURIComponent(id)}`)));
  return Object.fromEntries(read.filter((r) => r.status === 'fulfilled').map((r) => [r.value.account_id, r.value.balance_idr]));
}

async function showBalance(id) {
  const account = value(id);
  const place = $(`${id}-balance`);
  if (!account) {
    place.textContent = '';
    return;
  }
  try {
    const got = await get(`/api/accounts/${encodeURIComponent(account)}`);
    if (value(id) !== account) return; // the field has changed meanwhile
    place.classList.remove('off');
    place.textContent = t('pay.balance', {amount: rupiah(got.balance_idr)}) + (got.status === 'BLOCKED' ? ` · ${t('pay.blocked')}` : '');
  } catch (error) {
    if (value(id) !== account) return;
    place.classList.add('off');
    place.textContent = error.status === 404 ? t('pay.no_account') : error.status ? error.message : t('problem.connection');
  }
}

let quoted = 0;
async function showQuote() {
  const mine = ++quoted;
  const currency = value('currency');
  const {amount, problem} = readAmount(value('amount'), currency);
  complain('amount', value('amount') ? problem : '');
  if (!isBusy()) showSend(false);
  if (!amount) {
    $('quote').textContent = $('rate').textContent = '–';
    return;
  }
  try {
    const quote = await get(`/api/quotes?${new URLSearchParams({currency, amount})}`);
    if (mine !== quoted) return;
    $('quote').textContent = rupiah(quote.amount_idr);
    $('rate').textContent = quote.rate_time ? t('pay.rate_line', {currency, amount: price(quote.rate), time: time(quote.rate_time)}) : t('pay.rate_identity');
  } catch (error) {
    if (mine !== quoted) return;
    $('quote').textContent = $('rate').textContent = '–';
    if (error instanceof Problem && error.status === 400) complain('amount', t('problem.request', {text: error.message}));
  }
}

// refresh reads the balances and the price again.
export const refresh = () => Promise.all([showBalance('sender'), showBalance('receiver'), showQuote()]);

async function pick() {
  try {
    const two = await get('/api/random-accounts');
    $('sender').value = two.sender_id;
    $('receiver').value = two.receiver_id;
  } catch (error) {
    complain('sender', error.message);
    return;
  }
  complain('sender');
  complain('receiver');
  await Promise.all([showBalance('sender'), showBalance('receiver')]);
}

async function listCurrencies() {
  const {currencies} = await get('/api/currencies');
  const chosen = value('currency');
  for (const c of currencies) digitsOf[c.currency] = c.digits;
  $('currency').replaceChildren(...currencies.map((c) => make('option', {value: c.currency}, `${c.currency} – ${currencyName(c.currency)}`)));
  $('currency').value = currencies.some((c) => c.currency === chosen) ? chosen : currencies[0]?.currency;
}

function afterPause(action) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, pause);
  };
}

// begin fills in the form and follows the user's input.
export async function begin() {
  renewKey();
  $('amount').addEventListener('input', afterPause(showQuote));
  $('currency').addEventListener('change', () => {
    complain('currency');
    showQuote();
  });
  for (const id of ['sender', 'receiver']) {
    $(id).addEventListener('input', () => complain(id));
    $(id).addEventListener('input', afterPause(() => showBalance(id)));
  }
  $('pick').addEventListener('click', pick);
  $('new-key').addEventListener('click', renewKey);
  $('swap').addEventListener('click', () => {
    [$('sender').value, $('receiver').value] = [$('receiver').value, $('sender').value];
    refresh();
  });
  await Promise.allSettled([pick(), listCurrencies()]);
  await showQuote();
}
