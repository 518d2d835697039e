// Dead letters: messages that could not be handled, and what an operator can do with them.

import {api, get, problem} from './api.js';
import {$, make} from './dom.js';
import {paymentAt} from './router.js';
import {fill, say, why} from './section.js';
import {t, zonedTime} from './words.js';

const page = 20;
let drawn = '';
let chosen; // {letter, action}, while the dialog asks for a note

export function refresh() {
  return fill($('letters'), () => get(`/api/dead-letters?state=parked&limit=${page}`), (got) => {
    const letters = got.letters;
    const now = JSON.stringify(letters);
    if (now !== drawn) $('letters-table').tBodies[0].replaceChildren(...letters.map(row));
    drawn = now;
    $('letters-table').hidden = letters.length === 0;
    return letters.length === 0 ? t('letters.none') : got.next_before ? t('letters.more', {n: letters.length}) : '';
  });
}

// Other letters, such as those of fundings, have the key of an account.
const ofPayment = (letter) => /^pgw\.(payment|refund|capture|void|cancel)\.|kafka/.test(letter.type);

function row(letter) {
  const {key} = letter;
  const button = (action, label) => make('button', {type: 'button', class: 'quiet', 'aria-label': `${label}: ${letter.id}`, onclick: () => choose(letter, action)}, label);
  return make('tr', {},
    make('th', {scope: 'row'}, letter.at ? make('time', {datetime: letter.at}, zonedTime(letter.at)) : '–', make('code', {}, letter.type ?? '')),
    make('td', {'data-label': t('letters.key')}, !key ? '–' : ofPayment(letter) ? make('a', {href: paymentAt(key)}, key) : key),
    make('td', {'data-label': t('letters.reason')}, letter.reason ?? '–', letter.error && make('small', {}, letter.error)),
    make('td', {'data-label': t('letters.actions')}, button('redrive', t('letters.redrive')), ' ', button('discard', t('letters.discard'))));
}

function choose(letter, action) {
  chosen = {letter, action};
  $('act-heading').textContent = t(action === 'redrive' ? 'letters.redrive' : 'letters.discard');
  $('act-text').textContent = t(action === 'redrive' ? 'letters.redrive_text' : 'letters.discard_text');
  $('act-said').textContent = '';
  $('act-note').value = '';
  $('act').showModal();
}

async function act() {
  const {letter, action} = chosen;
  try {
    const response = await api(`/api/dead-letters/${encodeURIComponent(letter.id)}/${action}`, {
      method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify({note: $('act-note').value.trim()}),
    });
    if (!response.ok) throw await problem(response);
    $('act').close();
    say($('letters-done'), t(action === 'redrive' ? 'letters.redriven' : 'letters.discarded'));
    await refresh();
  } catch (error) {
    say($('act-said'), ...why(error));
  }
}

export function begin() {
  $('act-form').addEventListener('submit', (event) => {
    event.preventDefault();
    act();
  });
  $('act-close').addEventListener('click', () => $('act').close());
}
