// What has happened in the last hour or day, from the gateway's report.

import {get} from './api.js';
import {chart} from './chart.js';
import {$, make} from './dom.js';
import {words} from './outcome.js';
import {fill} from './section.js';
import {duration, language, number, t} from './words.js';

const spans = {hour: {seconds: 3600, step: 60}, day: {seconds: 86_400, step: 1800}};
const clock = new Intl.DateTimeFormat(language, {hour: '2-digit', minute: '2-digit', hourCycle: 'h23'});

export const spanOf = (query) => (query.get('span') === 'day' ? 'day' : 'hour');

// refresh reads the report of a span: hour or day.
export function refresh(name) {
  const span = spans[name];
  const to = Math.ceil(Date.now() / 1000 / span.step) * span.step;
  const time = (seconds) => new Date(1000 * seconds).toISOString();
  const query = new URLSearchParams({from: time(to - span.seconds), to: time(to), step: span.step});
  return fill($('activity'), () => get(`/api/reports/activity?${query}`), (got) => {
    const buckets = got.buckets ?? [];
    const times = buckets.map((b) => b.at);
    const of = (field, label, look) => ({label: t(label), look, values: buckets.map((b) => b[field])});
    const width = Math.max(280, Math.min(620, $('activity').clientWidth - 40));
    const common = {times, width, clock: (at) => clock.format(new Date(at))};
    const open = [...$('activity-charts').querySelectorAll('details')].map((d) => d.open);
    const reasons = Object.entries(got.reasons ?? {}).sort(([, a], [, b]) => b - a);
    const most = Math.max(1, ...reasons.map(([, n]) => n));
    $('activity-charts').replaceChildren(
      chart({...common, heading: t('activity.payments'), stacked: true, write: (n) => number(n), series: [of('success', 'state.SUCCESS', 'good'), of('failed', 'state.FAILED', 'bad'), of('pending', 'state.PENDING', 'open')]}),
      chart({...common, heading: t('activity.latency'), write: duration, series: [of('p50_ms', 'activity.p50', 'good'), of('p99_ms', 'activity.p99', 'kafka')]}),
      make('div', {}, make('h3', {}, t('activity.reasons')), reasons.length ? make('ul', {class: 'bars'}, ...reasons.map(([reason, n]) => {
        const bar = make('i');
        bar.style.width = `${100 * n / most}%`;
        return make('li', {class: 'refused'}, make('span', {}, words({reason}).title, ' ', make('code', {}, reason)), make('b', {}, number(n)), make('span', {class: 'track', 'aria-hidden': 'true'}, bar));
      })) : make('p', {class: 'hint'}, t('activity.no_reasons'))));
    [...$('activity-charts').querySelectorAll('details')].forEach((d, i) => { d.open = open[i] ?? false; });
    return got.source ? t(got.source === 'prometheus' ? 'activity.prometheus' : 'activity.ledger') : '';
  });
}
