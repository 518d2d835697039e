// A section of a view: it shows what was read, or says why it can't.

import {make} from './dom.js';
import {change, isAsking, onAsk} from './key.js';
import {t} from './words.js';

// why says in words why something can't be shown. absent is said if the gateway does not have it.
export function why(error, absent = t('may.absent')) {
  if (error.status === undefined) throw error; // an error of the page
  if (error.status === 403) return [t('may.not', {text: error.message}), ' ', make('button', {type: 'button', class: 'quiet', onclick: change}, t('key.other'))];
  if ([404, 405, 501].includes(error.status)) return [absent];
  return [error.status ? t('problem.request', {text: error.message}) : t('problem.connection')];
}

// say shows a text, or the reasons that why returns, in a status line.
export function say(line, ...parts) {
  const text = parts.map((part) => part.textContent ?? part).join('');
  if (line.textContent !== text) line.replaceChildren(...parts);
}

const turns = new WeakMap();

// fill reads and draws one section. The section has a line .said and a part .body. draw returns what
// the line says, if anything. When a later read fails, what is shown stays, with a note.
export async function fill(section, read, draw, absent) {
  const mine = {};
  turns.set(section, mine);
  const [line, body] = [section.querySelector('.said'), section.querySelector('.body')];
  if (body.hidden) say(line, isAsking() ? t('may.waiting') : t('may.reading'));
  const stop = onAsk(() => say(line, t('may.waiting')));
  try {
    const got = await read();
    if (turns.get(section) !== mine) return;
    line.classList.remove('problem');
    body.hidden = false; // before drawing, which measures what is shown
    const said = draw(got);
    say(line, ...(said ? [said] : []));
  } catch (error) {
    if (turns.get(section) !== mine) return;
    const stays = !body.hidden && !(error.status >= 400 && error.status < 500 && error.status !== 429);
    body.hidden = !stays;
    line.classList.toggle('problem', stays);
    say(line, ...(stays ? [t('may.stale'), ' '] : []), ...why(error, absent));
  } finally {
    stop();
  }
}
