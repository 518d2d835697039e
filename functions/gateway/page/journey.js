// The way of one payment: its stages, each as long as it took, where it began.

import {$, make} from './dom.js';
import {duration, t} from './words.js';

// The stages in order, with who does the work. Those that are seldom there are shown when they are.
const stages = [
  ['fx', 'ask'], ['wallet', 'ask'], ['risk', 'ask'], ['refuse', 'ledger', 'seldom'], ['lookup', 'ask', 'seldom'], ['publish', 'kafka'], ['queue', 'kafka'],
  ['settle', 'ledger'], ['reserve', 'ledger', 'part'], ['commit', 'ledger', 'part'], ['return', 'kafka'], ['wait', 'kafka', 'seldom'],
];

let took = {};
let rows = {};

// begin clears the way for another payment.
export function begin() {
  took = {};
  $('way-total').textContent = '';
  show();
  $('stages').classList.add('under-way');
  mark('fx');
}

// stage takes the time of one.
export function stage(name, ms) {
  took[name] = ms;
  if (name === 'total') return;
  if (rows[name]) rows[name].element.hidden = false;
  draw();
  mark(next(name));
}

// end says that no more will come.
export function end() {
  $('stages').classList.remove('under-way');
  mark(null);
  if (took.total !== undefined) $('way-total').textContent = t('way.total', {ms: duration(took.total)});
  draw();
}

// show lists the stages, without times.
export function show() {
  rows = {};
  $('stages').replaceChildren(...stages.map(([name, who, how]) => {
    const bar = make('i');
    const ms = make('span', {class: 'ms'}, '–');
    const element = make('li', {class: how === 'part' ? `${who} part` : who},
      make('span', {class: 'name'}, t(`stage.${name}`), ' ', make('small', {}, t(`stage.${name}_text`))),
      make('span', {class: 'track', 'aria-hidden': 'true'}, bar), ms);
    element.hidden = how === 'seldom';
    rows[name] = {element, bar, ms};
    return element;
  }));
}

// next is what is waited for when a stage has ended. What follows the queue is told only with the result.
function next(name) {
  if (name === 'fx') return 'risk';
  if (name === 'publish') return 'queue';
  return took.risk !== undefined && took.publish === undefined ? 'publish' : null;
}

function mark(waiting) {
  for (const [name, row] of Object.entries(rows)) row.element.classList.toggle('now', name === waiting);
}

// begins tells when each stage began: wallet is asked beside fx, and the queue is counted from before publishing.
function begins() {
  const of = (name) => took[name] ?? 0;
  const asked = Math.max(of('wallet'), of('fx') + of('risk'));
  const sent = asked + of('lookup') + of('refuse');
  const received = sent + of('queue');
  return {
    fx: 0, wallet: 0, risk: of('fx'), refuse: asked, lookup: asked, publish: sent, queue: sent, wait: sent + of('publish'),
    settle: received, reserve: received, commit: received + of('reserve'), return: received + of('settle'),
  };
}

function draw() {
  const from = begins();
  const known = Object.keys(took).filter((name) => rows[name]);
  const end = Math.max(took.total ?? 0, ...known.map((name) => from[name] + took[name])) || 1;
  for (const name of known) {
    // Set as properties: the policy of the page forbids style attributes.
    rows[name].bar.style.left = `${100 * from[name] / end}%`;
    rows[name].bar.style.width = `${100 * took[name] / end}%`;
    rows[name].ms.textContent = duration(took[name]);
  }
}
