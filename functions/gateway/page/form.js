// The payment form: accounts with their balances, the amount, and its value in rupiah or its firm
// price.

import {get, Problem} from './api.js';
import {$, make} from './dom.js';
import * as firm from './firm.js';
import {newKey} from './payment.js';
import {currencyName, language, money, price, rupiah, t, time} from './words.js';

const fields = {sender_id: 'sender', receiver_id: 'receiver', amount: 'amount', currency: 'currency', debit_currency: 'debit', credit_currency: 'credit', idempotency_key: 'idempotency'};
const digitsOf = {}; // decimal places of each currency that has a rate
let currencies = []; // the currencies that have a rate
const pause = 250; // ms after the last key press

const value = (id) => $(id).value.trim();

// complain shows a problem at its field. Without text it removes the problem.
function complain(id, text = '') {
  $(`${id}-problem`).textContent = text;
  if (id === 'firm') return; // it is about no single field
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
  for (const id of ['currency', 'debit', 'credit']) complain(id);
  for (const id of ['sender', 'receiver', 'idempotency']) complain(id, value(id) ? '' : t('problem.missing'));
  const wrong = $('pay').querySelector('[aria-invalid]');
  if (wrong) {
    wrong.focus();
    return null;
  }
  return {...priced(amount), idempotency_key: value('idempotency')};
}

// priced returns what a price is for. A payment between rupiah balances names no balances: that is
// how every gateway knows it.
function priced(amount) {
  const balances = inRupiah() ? {} : {debit_currency: value('debit'), credit_currency: value('credit')};
  return {...parties(), ...balances, currency: value('currency'), amount};
}

const inRupiah = () => value('debit') === 'IDR' && value('credit') === 'IDR';

// exchanges says whether the sender pays in another currency than the receiver gets.
const exchanges = () => value('debit') !== value('credit');

// firmPrice returns the firm price for what is filled in, if there is one.
export function firmPrice() {
  const {amount} = readAmount(value('amount'), value('currency'));
  return amount && firm.current(priced(amount));
}

// needsPrice says whether a firm price should be asked for before paying.
export const needsPrice = () => exchanges() && firm.isOffered() && !firmPrice();

// askPrice asks for a firm price and shows it, or the problem.
export async function askPrice(payment) {
  $('send').setAttribute('aria-disabled', 'true');
  $('send').textContent = t('firm.asking');
  complain('firm');
  try {
    await firm.ask(payment, () => busy(isBusy()));
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    complain('firm', error.status ? t('problem.request', {text: error.message}) : t('problem.connection'));
  } finally {
    busy(false);
    changed(); // the user may have changed the form meanwhile
  }
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
  const price = firmPrice();
  $('send').textContent = sending ? t('pay.sending')
    : price ? t('firm.send', {debit: money(price.debit_amount, price.debit_currency), credit: money(price.credit_amount, price.credit_currency)})
      : needsPrice() ? t('firm.ask')
        : amount ? t('pay.send_amount', {amount: money(amount, currency, digitsOf[currency])}) : t('pay.send');
}

// available returns what an account can spend in a currency: a decimal, or a number of rupiah. An
// earlier gateway knows only rupiah.
const available = (account, currency) => account.balances?.find((b) => b.currency === currency)?.available
  ?? (currency === 'IDR' ? account.balance_idr : '0');

// moved reads the two balances that a payment changes: [{id, currency, amount}]. It leaves out
// balances that could not be read.
export async function moved({sender_id, receiver_id, debit_currency = 'IDR', credit_currency = 'IDR'}) {
  const sides = [[sender_id, debit_currency], [receiver_id, credit_currency]].slice(0, sender_id === receiver_id && debit_currency === credit_currency ? 1 : 2);
  const read = await Promise.allSettled(sides.map(([id]) => get(`/api/accounts/${encodeURIComponent(id)}`)));
  return sides.flatMap(([id, currency], i) => (read[i].status === 'fulfilled' ? [{id, currency, amount: available(read[i].value, currency)}] : []));
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
    if (id === 'sender') listBalances(got);
    const currency = value(id === 'sender' ? 'debit' : 'credit');
    place.classList.remove('off');
    place.textContent = t('pay.balance', {amount: money(available(got, currency), currency)}) + (got.status === 'BLOCKED' ? ` · ${t('pay.blocked')}` : '');
  } catch (error) {
    if (value(id) !== account) return;
    place.classList.add('off');
    place.textContent = error.status === 404 ? t('pay.no_account') : error.status ? error.message : t('problem.connection');
  }
}

// options sets the options of a list and keeps the choice if it is there.
function options(id, values, labels = values) {
  const list = $(id);
  if ([...list.options].map((o) => o.label).join() === labels.join()) return;
  const chosen = list.value;
  list.replaceChildren(...values.map((code, i) => make('option', {value: code}, labels[i])));
  list.value = values.includes(chosen) ? chosen : values[0];
}

// listBalances lists the balances from which the sender can pay: rupiah first, which each account
// has.
function listBalances(account) {
  const before = value('debit');
  options('debit', ['IDR', ...(account.balances ?? []).map((b) => b.currency).filter((code) => code !== 'IDR')]);
  if (value('debit') !== before) changed();
}

// listFixed lists the currencies in which the amount can be given. Between rupiah balances it may be
// any; the payment is converted. Otherwise it is one of the two: what is sent, or what is received.
function listFixed() {
  const [debit, credit] = [value('debit'), value('credit')];
  if (inRupiah()) options('currency', currencies, currencies.map((code) => `${code} – ${currencyName(code)}`));
  else if (debit === credit) options('currency', [debit], [`${debit} – ${currencyName(debit)}`]);
  else options('currency', [debit, credit], [t('pay.fix_debit', {currency: debit}), t('pay.fix_credit', {currency: credit})]);
}

// changed shows what follows from a change of the form.
function changed() {
  listFixed();
  $('indication').hidden = exchanges();
  const {amount} = readAmount(value('amount'), value('currency'));
  firm.keep(priced(amount));
  if (!isBusy()) showSend(false);
}

let quoted = 0;
async function showQuote() {
  const mine = ++quoted;
  const currency = value('currency');
  const {amount, problem} = readAmount(value('amount'), currency);
  complain('amount', value('amount') ? problem : '');
  changed();
  if (!amount || exchanges()) {
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
  changed();
  await Promise.all([showBalance('sender'), showBalance('receiver')]);
}

async function listCurrencies() {
  const got = await get('/api/currencies');
  for (const c of got.currencies) digitsOf[c.currency] = c.digits;
  currencies = got.currencies.map((c) => c.currency);
  options('credit', ['IDR', ...currencies.filter((code) => code !== 'IDR')]);
  listFixed();
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
  for (const [id, party] of [['debit', 'sender'], ['credit', 'receiver']]) {
    $(id).addEventListener('change', () => {
      complain(id);
      showBalance(party);
      showQuote();
    });
  }
  $('pay').addEventListener('input', () => {
    complain('firm');
    changed();
  });
  for (const id of ['sender', 'receiver']) {
    $(id).addEventListener('input', () => complain(id));
    $(id).addEventListener('input', afterPause(() => showBalance(id)));
  }
  $('pick').addEventListener('click', pick);
  $('new-key').addEventListener('click', renewKey);
  $('swap').addEventListener('click', () => {
    [$('sender').value, $('receiver').value] = [$('receiver').value, $('sender').value];
    const [debit, credit] = [value('debit'), value('credit')];
    options('debit', [...new Set(['IDR', credit])]); // until the account's balances are read
    [$('debit').value, $('credit').value] = [credit, debit];
    refresh();
  });
  await Promise.allSettled([pick(), listCurrencies()]);
  await showQuote();
}
