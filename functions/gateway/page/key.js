// The API key, when the gateway needs one. It is kept until the tab is closed.

import {$} from './dom.js';
import {t} from './words.js';

const place = 'pgw-api-key';
let current = sessionStorage.getItem(place) ?? '';
let asked; // the promise of a key, while the user is being asked

export const key = () => current;

// ask shows the field, and resolves when there is another key than the refused one.
export function ask(refused) {
  if (current && current !== refused) return Promise.resolve(); // a key was entered meanwhile
  $('key-refused').textContent = refused ? t('key.refused') : '';
  asked ??= new Promise((resolve) => {
    $('key').hidden = false;
    $('key-input').focus();
    $('key-form').addEventListener('submit', (event) => {
      event.preventDefault();
      current = $('key-input').value.trim();
      sessionStorage.setItem(place, current);
      $('key-input').value = '';
      $('key').hidden = true;
      asked = undefined;
      resolve();
    }, {once: true});
  });
  return asked;
}
