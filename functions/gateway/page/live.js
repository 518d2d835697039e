// The live panel: the gateway's metrics, read every two seconds, as rates and quantiles.

import {api} from './api.js';
import {$, make} from './dom.js';
import {duration, number, t} from './words.js';

const every = 2000; // ms
const points = 60; // two minutes
const span = 5; // number of scrapes for one latency
const samples = []; // {at, total, buckets}
const series = {rate: [], p50: [], p99: []};

// parse reads the Prometheus text format. It yields [name, {labels}, value] of the wanted metrics.
function* parse(text, wanted) {
  for (const line of text.split('\n')) {
    const found = /^(\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found || !wanted.has(found[1])) continue;
    const labels = Object.fromEntries([...(found[2] ?? '').matchAll(/(\w+)="([^"]*)"/g)].map(([, name, value]) => [name, value]));
    yield [found[1], labels, Number(found[3])];
  }
}

const undecidedReasons = /_unavailable$|^queue_|^overloaded$/;

function outcomeOf({status, reason}) {
  if (status === 'SUCCESS') return 'settled';
  if (status === 'SUCCESS_REPLAY') return 'replayed';
  return undecidedReasons.test(reason) ? 'failed' : 'refused';
}

function read(text) {
  const sample = {at: performance.now(), total: 0, outcomes: {settled: 0, replayed: 0, refused: 0, failed: 0}, buckets: []};
  for (const [name, labels, value] of parse(text, new Set(['pgw_payments_total', 'pgw_stage_seconds_bucket']))) {
    if (name === 'pgw_payments_total') {
      sample.total += value;
      sample.outcomes[outcomeOf(labels)] += value;
    } else if (labels.stage === 'total') {
      sample.buckets.push([labels.le === '+Inf' ? Infinity : Number(labels.le), value]);
    }
  }
  sample.buckets.sort(([a], [b]) => a - b);
  return sample;
}

// quantile returns a quantile of the observations between two samples. It assumes an even spread
// within a bucket, and returns undefined without observations.
function quantile(q, from, to) {
  const before = new Map(from.buckets);
  const grown = to.buckets.map(([le, n]) => [le, n - (before.get(le) ?? 0)]);
  const all = grown.at(-1)?.[1] ?? 0;
  if (all <= 0) return undefined;
  let low = 0;
  let below = 0;
  for (const [le, n] of grown) {
    if (n >= q * all) return 1000 * (le === Infinity ? low : low + (le - low) * (q * all - below) / (n - below));
    low = le;
    below = n;
  }
  return undefined;
}

function take(sample) {
  const last = samples.at(-1);
  // A gateway that has restarted counts from 0.
  if (last && sample.total < last.total) samples.length = 0;
  samples.push(sample);
  if (samples.length > points) samples.shift();
  if (samples.length < 2) return;
  const previous = samples.at(-2);
  const from = samples[Math.max(0, samples.length - 1 - span)];
  push(series.rate, 1000 * (sample.total - previous.total) / (sample.at - previous.at));
  push(series.p50, quantile(0.5, from, sample));
  push(series.p99, quantile(0.99, from, sample));
}

function push(list, value) {
  list.push(value);
  if (list.length > points) list.shift();
}

// line returns the path of a series in a box of 240 by 64. A missing value makes a gap.
function line(values, top) {
  let path = '';
  values.forEach((value, i) => {
    if (value === undefined) return;
    const x = 240 * (points - values.length + i) / (points - 1);
    path += `${path && values[i - 1] !== undefined ? 'L' : 'M'}${x.toFixed(1)} ${(62 - 60 * Math.min(1, value / top)).toFixed(1)}`;
  });
  return path && `${path}l0 0`; // a single point is a dot
}

function draw(sample) {
  const top = (...lists) => Math.max(1, ...lists.flat().filter((v) => v !== undefined)) * 1.1;
  const [area, rate] = $('rate-chart').children;
  const path = line(series.rate, top(series.rate));
  rate.setAttribute('d', path);
  area.setAttribute('d', path && `${path}L240 64L${(240 * (points - series.rate.length) / (points - 1)).toFixed(1)} 64Z`);
  const [p99, p50] = $('latency-chart').children;
  const highest = top(series.p99);
  p99.setAttribute('d', line(series.p99, highest));
  p50.setAttribute('d', line(series.p50, highest));

  const now = (list, write) => (list.at(-1) === undefined ? '–' : write(list.at(-1)));
  $('live-rate').textContent = now(series.rate, (v) => number(v, v < 100 ? 1 : 0));
  $('live-p50').textContent = now(series.p50, duration);
  $('live-p99').textContent = now(series.p99, duration);

  const most = Math.max(1, ...Object.values(sample.outcomes));
  Object.entries(sample.outcomes).forEach(([name, count], i) => {
    const item = $('live-outcomes').children[i] ?? $('live-outcomes').appendChild(
      make('li', {class: name}, make('span', {}, t(`live.${name}`)), make('b'), make('span', {class: 'track', 'aria-hidden': 'true'}, make('i'))));
    item.children[1].textContent = number(count);
    item.lastChild.firstChild.style.width = `${100 * count / most}%`;
  });
}

async function scrape() {
  if (document.visibilityState !== 'visible') return;
  try {
    const response = await api('/metrics', {headers: {Accept: 'text/plain'}});
    if (!response.ok) return;
    const sample = read(await response.text());
    take(sample);
    draw(sample);
  } catch {
    // The next read may succeed. The form already says that the gateway can't be reached.
  }
}

// begin reads the metrics while the page is visible.
export async function begin() {
  for (;;) {
    await scrape();
    await new Promise((resolve) => setTimeout(resolve, every));
  }
}
