// What the list of webhooks and the page of one have in common.

import {api, problem} from './api.js';
import {make} from './dom.js';
import {say} from './section.js';
import {has, t, zonedTime} from './words.js';

// send makes a request, and returns its JSON answer, if it has one.
export async function send(method, path, body) {
  const response = await api(path, {method, headers: body ? {'Content-Type': 'application/json'} : {}, body: body && JSON.stringify(body)});
  if (!response.ok) throw await problem(response);
  return response.status === 204 ? undefined : response.json();
}

const reason = (name) => (has(`disabled.${name}`) ? t(`disabled.${name}`) : name);

// state returns an element that says whether the webhook gets events.
export function state(hook) {
  if (!hook.enabled) return make('span', {class: 'state bad'}, t('hook.disabled'), make('small', {}, reason(hook.disabled_reason)));
  if (hook.failing_since) return make('span', {class: 'state open'}, t('hook.failing'), make('small', {}, t('hook.since', {time: zonedTime(hook.failing_since)})));
  return make('span', {class: 'state good'}, t('hook.enabled'));
}

export const typesOf = (hook) => (hook.types.length ? hook.types.join(', ') : t('hooks.all_types'));

// showSecret shows the secret of a webhook, which the gateway tells only this once.
export function showSecret(place, title, hook, ...more) {
  const secret = make('code', {class: 'secret', tabindex: '0', 'aria-label': t(hook.signature === 'v1a' ? 'hook.public_key' : 'hook.secret')}, hook.secret);
  const said = make('p', {class: 'hint', role: 'status'});
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(hook.secret);
      say(said, t('hook.copied'));
    } catch { // the browser does not allow it
      getSelection().selectAllChildren(secret);
      say(said, t('hook.not_copied'));
    }
  };
  place.className = 'outcome good';
  place.replaceChildren(make('p', {class: 'title'}, title), make('p', {}, t(hook.signature === 'v1a' ? 'hook.public_key_text' : 'hook.secret_text')),
    make('div', {class: 'inline'}, secret, make('button', {type: 'button', class: 'quiet', onclick: copy}, t('hook.copy'))), said, ...more);
  place.hidden = false;
}

// forget removes the secret from the page.
export function forget(place) {
  place.replaceChildren();
  place.hidden = true;
}

// once runs an action of a button, and ignores further clicks until it has ended.
export async function once(button, act) {
  if (button.getAttribute('aria-disabled') === 'true') return;
  button.setAttribute('aria-disabled', 'true');
  try {
    await act();
  } finally {
    button.removeAttribute('aria-disabled');
  }
}
