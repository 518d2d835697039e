// The API key, when the gateway needs one. It is kept in memory, until the page is reloaded or
// closed.

import {$} from './dom.js';
import {t} from './words.js';

let current = '';
let asked; // {promise, resolve} while the user is being asked
const listeners = new Set();

export const key = () => current;
export const isAsking = () => asked !== undefined;

// onAsk calls listener when the user is asked for a key. The result ends that.
export function onAsk(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

// ask shows the field, and resolves when there is another key than the refused one.
export function ask(refused) {
  if (current && current !== refused) return Promise.resolve(); // a key was entered meanwhile
  $('key-refused').textContent = refused ? t('key.refused') : '';
  if (!asked) {
    asked = Promise.withResolvers();
    $('key').hidden = false;
    $('key-input').focus();
  }
  for (const listener of listeners) listener();
  return asked.promise;
}

// change asks for another key. What is shown is then read again.
export function change() {
  $('key').hidden = false;
  $('key-refused').textContent = '';
  $('key-input').focus();
}

// begin connects the form. changed is called when there is another key.
export function begin(changed) {
  $('key-change').addEventListener('click', change);
  $('key-form').addEventListener('submit', (event) => {
    event.preventDefault();
    current = $('key-input').value.trim();
    $('key-input').value = '';
    $('key').hidden = true;
    $('key-change').hidden = false;
    const waiting = asked;
    asked = undefined;
    if (waiting) waiting.resolve();
    else changed();
  });
}
