// The newest payments of the ledger, beside the form.

import {get} from './api.js';
import {$, make} from './dom.js';
import {alsoAmount, amountOf, begunAt, look, refusal, stateOf} from './record.js';
import {paymentAt} from './router.js';
import {fill} from './section.js';
import {t, time} from './words.js';

const page = 10;
const rows = new Map(); // the drawn rows, by reference

// refresh reads the newest payments again.
export function refresh() {
  return fill($('recent'), () => get(`/api/payments?limit=${page}`), ({payments}) => {
    draw(payments.map(rowOf));
    return payments.length ? t('recent.count', {n: payments.length}) : t('recent.none');
  });
}

// draw leaves a row that has not changed in its place, so that it does not move while the user
// presses it.
function draw(elements) {
  const list = $('payments');
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

function row(p) {
  const also = alsoAmount(p);
  const why = refusal(p);
  return make('li', {}, make('a', {'data-ref': p.ref, href: paymentAt(p.idempotency_key)},
    make('time', {datetime: begunAt(p)}, time(begunAt(p))),
    make('span', {class: 'who'}, p.sender_id, ' ', make('span', {class: 'arrow'}, make('span', {class: 'unseen'}, t('recent.to')), make('span', {'aria-hidden': 'true'}, '→')), ' ', p.receiver_id),
    make('span', {class: 'amount'}, amountOf(p), also && make('small', {}, also)),
    make('span', {class: `state ${look[stateOf(p)]}`}, t(`state.${stateOf(p)}`), why && make('small', {}, why))));
}
