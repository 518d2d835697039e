// The example cases. Each one builds a payment from the accounts in the form.

import {$, make} from './dom.js';
import {balances, parties} from './form.js';
import {kind, words} from './outcome.js';
import {newPayment, sendPlain, settled} from './payment.js';
import {duration, rupiah, t} from './words.js';

const many = 100;
const each = 1000; // rupiah

// Each case returns the payments to send, one after the other. last is the newest settled payment
// of this tab.
const made = {
  again: async (last) => {
    if (last) return [last];
    const first = newPayment({...parties(), currency: 'IDR', amount: '1000'});
    return [first, first];
  },
  funds: async () => {
    const {sender_id} = parties();
    const {[sender_id]: balance = 0} = await balances(sender_id);
    return [newPayment({...parties(), currency: 'IDR', amount: String(balance + 1)})];
  },
  risk: async () => [newPayment({...parties(), receiver_id: parties().sender_id, currency: 'IDR', amount: '1000'})],
  currency: async () => [newPayment({...parties(), currency: 'ABC', amount: '10'})],
};

// begin connects the buttons. pay sends one payment and shows it. changed is called after balances
// have changed.
export function begin({pay, last, changed}) {
  for (const button of document.querySelectorAll('[data-case]')) {
    button.addEventListener('click', async () => {
      if (button.dataset.case === 'crowd') {
        await crowd(button);
        changed();
        return;
      }
      $('way').scrollIntoView({block: 'nearest'});
      for (const payment of await made[button.dataset.case](last())) await pay(payment);
    });
  }
}

// crowd sends many payments at once, and shows each answer as a cell.
async function crowd(button) {
  if (button.getAttribute('aria-disabled') === 'true') return;
  button.setAttribute('aria-disabled', 'true');
  const {sender_id, receiver_id} = parties();
  const cells = Array.from({length: many}, () => make('i'));
  $('crowd-cells').replaceChildren(...cells);
  $('crowd-result').replaceChildren(make('p', {}, t('crowd.under_way', {n: 0})));
  $('crowd').hidden = false;
  $('crowd').scrollIntoView({block: 'nearest'});

  const before = await balances(sender_id);
  const begun = performance.now();
  const answers = await Promise.all(cells.map(async (cell) => {
    const sent = performance.now();
    const answer = await sendPlain(newPayment({sender_id, receiver_id, currency: 'IDR', amount: String(each)}));
    cell.className = kind(answer);
    return {...answer, ms: performance.now() - sent};
  }));
  const took = performance.now() - begun;
  const after = await balances(sender_id);
  $('crowd-result').replaceChildren(...report(answers, took, before[sender_id] - after[sender_id]));
  button.removeAttribute('aria-disabled');
}

function report(answers, took, less) {
  const paid = answers.filter(settled).length;
  const times = answers.map((a) => a.ms).sort((a, b) => a - b);
  const counts = Map.groupBy(answers.filter((a) => !settled(a)), (a) => words(a).title);
  const sum = {n: paid, each: rupiah(each), amount: rupiah(less)};
  return [
    make('p', {class: 'title'}, t('crowd.done', {settled: paid, refused: many - paid, time: duration(took)})),
    make('p', {}, t(less === paid * each ? 'crowd.sum' : 'crowd.sum_off', sum)),
    make('p', {class: 'hint'}, t('crowd.latency', {p50: duration(times[many / 2 - 1]), p99: duration(times[many * 0.99 - 1])})),
    ...[...counts].map(([reason, those]) => make('p', {class: 'hint'}, t('crowd.reason', {n: those.length, reason}))),
  ];
}
