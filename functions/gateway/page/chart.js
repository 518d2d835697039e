// A chart over time, with axes. Its values are also in a table, for those who can't see it.

import {make} from './dom.js';
import {draw} from './svg.js';
import {t} from './words.js';

const [height, left, right, above, below] = [180, 56, 8, 8, 24];

// steps returns the marks of an axis from 0 to at least most: 1, 2 or 5 times a power of ten apart, and
// at least as far apart as least.
export function steps(most, least = 0) {
  const rough = Math.max(most / 4, least) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((n) => n * power >= rough) * power;
  return Array.from({length: Math.max(1, Math.ceil(most / step - 1e-9)) + 1}, (_, i) => i * step);
}

// chart returns a figure. series are {label, look, values}, one value for each time; undefined makes
// a gap. If stacked is set, they are columns on top of each other, else lines.
export function chart({heading, times, series, stacked, write, clock, width}) {
  const sums = times.map((_, i) => series.reduce((sum, s) => sum + (s.values[i] ?? 0), 0));
  const most = Math.max(0, ...stacked ? sums : series.flatMap((s) => s.values.filter((v) => v !== undefined)));
  const marks = steps(most || 1, stacked ? 1 : 0); // columns are of whole numbers
  const top = marks.at(-1);
  const wide = width - left - right;
  const x = (i) => left + wide * (stacked ? i / times.length : i / Math.max(1, times.length - 1));
  const y = (value) => above + (height - above - below) * (1 - value / top);
  const picture = draw('svg', {class: 'chart', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': heading});
  for (const mark of marks) {
    picture.append(draw('line', {class: 'gridline', x1: left, x2: width - right, y1: y(mark), y2: y(mark)}),
      draw('text', {x: left - 6, y: y(mark) + 4, 'text-anchor': 'end'}, write(mark)));
  }
  const labels = Math.max(1, Math.min(6, Math.floor(wide / 70)));
  for (let n = 0; n <= labels; n++) {
    const i = Math.round(n * (times.length - 1) / labels);
    if (times[i] === undefined) continue;
    picture.append(draw('text', {x: x(i), y: height - 6, 'text-anchor': n === 0 ? 'start' : n === labels ? 'end' : 'middle'}, clock(times[i])));
  }
  if (stacked) {
    times.forEach((_, i) => {
      let sum = 0;
      for (const s of series) {
        const value = s.values[i] ?? 0;
        if (value) picture.append(draw('rect', {class: s.look, x: x(i), width: Math.max(1, wide / times.length - 1), y: y(sum + value), height: y(sum) - y(sum + value)}));
        sum += value;
      }
    });
  } else {
    for (const s of series) {
      const line = s.values.map((value, i) => (value === undefined ? '' : `${s.values[i - 1] === undefined ? 'M' : 'L'}${x(i).toFixed(1)} ${y(value).toFixed(1)}l0 0`)).join('');
      if (line) picture.append(draw('path', {class: s.look, d: line}));
    }
  }
  const table = make('table', {class: 'grid'}, make('caption', {class: 'unseen'}, heading),
    make('thead', {}, make('tr', {}, make('th', {scope: 'col'}, t('chart.time')), ...series.map((s) => make('th', {scope: 'col'}, s.label)))),
    make('tbody', {}, ...times.map((at, i) => make('tr', {}, make('th', {scope: 'row'}, clock(at)), ...series.map((s) => make('td', {}, s.values[i] === undefined ? '–' : write(s.values[i])))))));
  return make('figure', {}, make('figcaption', {}, make('b', {}, heading), make('span', {class: 'legend'}, ...series.map((s) => make('span', {class: s.look}, s.label)))),
    picture, make('details', {}, make('summary', {}, t('chart.table')), table));
}
