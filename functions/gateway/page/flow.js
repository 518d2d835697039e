// The flow as a picture: one row for each hop, with its rate and how far it lags behind.

import {make} from './dom.js';
import {draw} from './svg.js';
import {number, t} from './words.js';

const [row, box] = [84, 96]; // what an arrow says stands above and below the boxes, which are wide on a phone

const rateOf = (hop) => (hop.rate_per_second === undefined ? t('flow.rate_unknown') : t('flow.rate', {n: number(hop.rate_per_second, hop.rate_per_second < 100 ? 1 : 0)}));
const lagOf = (hop) => (hop.lag === undefined ? t('flow.lag_unknown') : t('flow.lag', {n: number(hop.lag)}));

const nameOf = (name) => (name === 'outside' ? t('flow.outside') : name);

// flow returns the picture, width wide.
export function flow(hops, width) {
  const said = hops.map((hop) => `${nameOf(hop.from)} → ${nameOf(hop.to)}, ${hop.topic ?? ''}: ${rateOf(hop)}, ${lagOf(hop)}`).join('; ');
  const picture = draw('svg', {class: 'flow', viewBox: `0 0 ${width} ${row * hops.length}`, role: 'img', 'aria-label': said});
  hops.forEach((hop, i) => {
    const middle = row * i + row / 2;
    const [begin, end] = [box + 4, width - box - 6];
    const node = (name, x) => [draw('rect', {x: x + 1, y: middle - 18, width: box - 2, height: 36, rx: 8}), draw('text', {class: 'node', x: x + box / 2, y: middle + 4, 'text-anchor': 'middle'}, name)];
    picture.append(draw('g', {class: hop.lag > 1000 ? 'bad' : hop.lag > 0 ? 'open' : 'good'}, ...node(nameOf(hop.from), 0), ...node(nameOf(hop.to), width - box),
      draw('path', {d: `M${begin} ${middle}H${end}m-6 -5l6 5l-6 5`}),
      draw('text', {x: (begin + end) / 2, y: middle - 26, 'text-anchor': 'middle'}, hop.topic ?? ''),
      draw('text', {class: 'figures', x: (begin + end) / 2, y: middle + 34, 'text-anchor': 'middle'}, `${rateOf(hop)} · ${lagOf(hop)}`)));
  });
  return make('div', {}, picture);
}
