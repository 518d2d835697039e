// Operations: what the gateway's status knows, dead letters, and charts.

import * as activity from '../activity.js';
import {get} from '../api.js';
import * as books from '../books.js';
import {$, make} from '../dom.js';
import {flow} from '../flow.js';
import {change} from '../key.js';
import * as letters from '../letters.js';
import {fill} from '../section.js';
import {verdict} from '../verdict.js';
import {has, number, rupiah, t, zonedTime} from '../words.js';

const charts = 30_000; // ms between two reads of the charts and of the books

let begun = false;
let span = 'hour';
let charted = 0; // when the charts were read, by performance.now()

const named = (group, name) => (has(`${group}.${name}`) ? t(`${group}.${name}`) : name);
const looks = {ok: 'good', up: 'good', agrees: 'good', down: 'bad', differs: 'bad'};
const state = (group, name) => make('span', {class: `state ${looks[name] ?? 'open'}`}, named(group, name));
const facts = (...pairs) => make('dl', {class: 'facts'}, ...pairs.flatMap(([label, value]) => [make('dt', {}, t(label)), make('dd', {}, value ?? t('status.unknown'))]));
const time = (at) => at && zonedTime(at);
const count = (n) => (n === undefined ? undefined : number(n));

// limited says what is missing when the gateway tells only its state.
const limited = () => [make('p', {class: 'hint'}, t('status.limited')), make('button', {type: 'button', class: 'quiet', onclick: change}, t('key.give'))];
const unknown = () => [make('p', {class: 'hint'}, t('status.absent'))];

function dependency(d) {
  return make('tr', {}, make('th', {scope: 'row'}, d.name), make('td', {'data-label': t('status.state')}, state('dependency', d.state)),
    make('td', {'data-label': t('status.since')}, time(d.since) ?? '–'), make('td', {'data-label': t('status.detail')}, d.detail ?? '–'));
}

function drawStatus(s) {
  const missing = s.dependencies || s.flow || s.ledger ? unknown : limited;
  $('status-state').className = `outcome ${looks[s.state] ?? 'open'}`;
  $('status-state').replaceChildren(make('p', {class: 'title'}, named('health', s.state)), make('p', {}, named('health', `${s.state}_text`)));
  $('dependencies').replaceChildren(...s.dependencies ? [make('table', {class: 'grid'}, make('caption', {class: 'unseen'}, t('status.dependencies')),
    make('thead', {}, make('tr', {}, ...['status.name', 'status.state', 'status.since', 'status.detail'].map((key) => make('th', {scope: 'col'}, t(key))))),
    make('tbody', {}, ...s.dependencies.map(dependency)))] : missing());
  $('flow').replaceChildren(...s.flow?.length ? [flow(s.flow, Math.max(280, Math.min(560, $('flow').clientWidth)))] : missing());
  const ledger = s.ledger;
  $('ledger').replaceChildren(...ledger ? [facts(['status.pending', count(ledger.pending)], ['status.held', ledger.held_idr === undefined ? undefined : rupiah(ledger.held_idr)],
    ['status.undecided', time(ledger.oldest_pending_at) ?? (ledger.last_sweep_at ? t('status.none') : undefined)], ['status.sweep', time(ledger.last_sweep_at)], ['status.schema', ledger.schema])] : missing());
  const found = s.reconcile;
  $('reconcile').replaceChildren(...found ? [make('p', {}, state('verdict', found.verdict)), ...verdict(found.text ?? ''), facts(['status.checked', time(found.at)], ['status.breaches', count(found.breaches)])] : missing());
  const dead = s.dead_letters;
  $('letters-counts').replaceChildren(...dead ? [facts(['letters.waiting', count(dead.waiting)], ['letters.parked', count(dead.parked)], ['status.oldest', time(dead.oldest_at) ?? (dead.waiting === 0 ? t('status.none') : undefined)])] : []);
  return s.at ? t('status.at', {time: zonedTime(s.at)}) : '';
}

export function refresh() {
  const reads = [fill($('status'), () => get('/status'), drawStatus), letters.refresh()];
  if (performance.now() - charted >= charts) {
    charted = performance.now();
    reads.push(activity.refresh(span), books.refresh());
  }
  return Promise.all(reads);
}

export function show(id, query) {
  if (!begun) letters.begin();
  begun = true;
  span = activity.spanOf(query);
  charted = -charts;
  for (const link of document.querySelectorAll('#activity a[data-span]')) {
    if (link.dataset.span === span) link.setAttribute('aria-current', 'true');
    else link.removeAttribute('aria-current');
  }
  return refresh();
}
