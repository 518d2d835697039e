// The stages of one payment. Each bar shows when its stage began and how long it took.

import {$, make} from './dom.js';
import {duration, t} from './words.js';

// The stages in order, each with the part that does the work. Optional stages are shown only when
// they happen.
const stages = [
  ['fx', 'ask'], ['wallet', 'ask'], ['risk', 'ask'], ['refuse', 'ledger', 'optional'], ['lookup', 'ask', 'optional'], ['publish', 'kafka'], ['queue', 'kafka'],
  ['settle', 'ledger'], ['reserve', 'ledger', 'part'], ['commit', 'ledger', 'part'], ['return', 'kafka'], ['wait', 'kafka', 'optional'],
];

let took = {};
let rows = {};

// The stages of this tab's payments, by key.
const taken = new Map();

// begin resets the stages for another payment.
export function begin(key) {
  took = {};
  taken.set(key, took);
  $('way-total').textContent = '';
  show();
  $('stages').classList.add('under-way');
  mark('fx');
}

// stage records the time of one stage.
export function stage(name, ms) {
  took[name] = ms;
  if (name === 'total') return;
  if (rows[name]) rows[name].element.hidden = false;
  draw();
  mark(next(name));
}

// end marks the payment as finished; no stage follows.
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
    element.hidden = how === 'optional';
    rows[name] = {element, bar, ms};
    return element;
  }));
}

// next returns the stage that runs after the named one. Stages after the queue arrive only with the
// result.
function next(name) {
  if (name === 'fx') return 'risk';
  if (name === 'publish') return 'queue';
  return took.risk !== undefined && took.publish === undefined ? 'publish' : null;
}

function mark(waiting) {
  for (const [name, row] of Object.entries(rows)) row.element.classList.toggle('now', name === waiting);
}

// begins returns the start of each stage. wallet runs at the same time as fx, and queue starts
// before publish.
function begins(known) {
  const of = (name) => known[name] ?? 0;
  const asked = Math.max(of('wallet'), of('fx') + of('risk'));
  const sent = asked + of('lookup') + of('refuse');
  const received = sent + of('queue');
  return {
    fx: 0, wallet: 0, risk: of('fx'), refuse: asked, lookup: asked, publish: sent, queue: sent, wait: sent + of('publish'),
    settle: received, reserve: received, commit: received + of('reserve'), return: received + of('settle'),
  };
}

// barsOf returns the stages of one of this tab's payments, as waterfall takes them.
export function barsOf(key) {
  const known = taken.get(key) ?? {};
  const from = begins(known);
  return stages.filter(([name]) => known[name] !== undefined).map(([name, who, how]) => (
    {label: t(`stage.${name}`), text: t(`stage.${name}_text`), who, part: how === 'part', from: from[name], ms: known[name]}));
}

// waterfall returns the list of bars, each with when it began and how long it took.
export function waterfall(bars) {
  const end = Math.max(...bars.map((bar) => bar.from + bar.ms)) || 1;
  return make('ol', {class: 'stages'}, ...bars.map(({label, text, who, part, from, ms}) => {
    const bar = make('i');
    bar.style.left = `${100 * from / end}%`;
    bar.style.width = `${100 * ms / end}%`;
    return make('li', {class: part ? `${who} part` : who}, make('span', {class: 'name'}, label, ' ', make('small', {}, text)),
      make('span', {class: 'track', 'aria-hidden': 'true'}, bar), make('span', {class: 'ms'}, duration(ms)));
  }));
}

function draw() {
  const from = begins(took);
  const known = Object.keys(took).filter((name) => rows[name]);
  const end = Math.max(took.total ?? 0, ...known.map((name) => from[name] + took[name])) || 1;
  for (const name of known) {
    // These are set as properties, because the page's policy forbids style attributes.
    rows[name].bar.style.left = `${100 * from[name] / end}%`;
    rows[name].bar.style.width = `${100 * took[name] / end}%`;
    rows[name].ms.textContent = duration(took[name]);
  }
}
