// What a payment of the ledger looks like in words.

import {words} from './outcome.js';
import {money, rupiah, t} from './words.js';

// stateOf returns the state of a payment in words of the page. An authorized one has moved nothing yet.
export const stateOf = (p) => (p.reason === 'authorized' ? 'AUTHORIZED' : p.status ?? 'PENDING');
export const look = {SUCCESS: 'good', FAILED: 'bad', PENDING: 'open', AUTHORIZED: 'open'};
export const begunAt = (p) => p.accepted_at ?? p.reserved_at;
export const sent = (p) => money(p.debit_amount, p.debit_currency);
export const got = (p) => money(p.credit_amount, p.credit_currency);

// amountOf returns what was sent, or what the client asked for.
export const amountOf = (p) => (p.exchange ? sent(p) : p.amount ? money(p.amount, p.currency) : rupiah(p.amount_idr));

// alsoAmount returns the other side of a conversion, if there is one.
export const alsoAmount = (p) => (p.exchange ? t('recent.received', {amount: got(p)}) : p.amount_idr && p.currency !== 'IDR' ? rupiah(p.amount_idr) : '');

// refusal returns why a payment was refused, if it was.
export const refusal = (p) => (p.status === 'FAILED' ? words(p).title : '');
