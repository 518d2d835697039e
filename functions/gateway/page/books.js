// The trial balance: does each currency add up, and what do the house's accounts have?

import {get} from './api.js';
import {$, make} from './dom.js';
import {fill} from './section.js';
import {decimal, number, t, zonedTime} from './words.js';

export function refresh() {
  return fill($('books'), () => get('/api/reports/trial-balance'), (got) => {
    $('books-table').tBodies[0].replaceChildren(...got.currencies.map(row));
    return t('books.at', {time: zonedTime(got.at)});
  });
}

function row(c) {
  return make('tr', {}, make('th', {scope: 'row'}, c.currency),
    make('td', {'data-label': t('books.sum')}, make('span', {class: `state ${isZero(c.sum) ? 'good' : 'bad'}`}, isZero(c.sum) ? t('books.zero') : decimal(c.sum))),
    make('td', {'data-label': t('books.clients')}, decimal(c.available), make('small', {}, t('books.held', {held: decimal(c.held), n: number(c.accounts)}))),
    make('td', {'data-label': t('books.house')}, ...c.house.filter((h) => h.position_limit || !isZero(h.available)).map(account)));
}

const isZero = (amount) => /^-?0(\.0+)?$/.test(amount);

const account = (h) => make('div', {}, `${h.account_id} ${decimal(h.available)}`,
  h.position_limit && make('small', {}, t('books.position', {position: decimal(h.position), limit: decimal(h.position_limit)})));
