// Webhooks: the list, and a form that adds one.

import {get} from '../api.js';
import {$, make} from '../dom.js';
import {forget, once, send, showSecret, state, typesOf} from '../hook.js';
import {go, webhookAt} from '../router.js';
import {fill, say, why} from '../section.js';
import {number, t} from '../words.js';

const most = 200; // rows

let begun = false;
let client = ''; // whose webhooks are shown; empty: all that the key may see
let drawn = '';

const row = (hook) => make('tr', {},
  make('th', {scope: 'row'}, make('a', {href: webhookAt(hook.id)}, hook.url), hook.description && make('small', {}, hook.description),
    hook.client && make('small', {}, `${t('hooks.client')}: ${hook.client}`)),
  make('td', {'data-label': t('hooks.types')}, typesOf(hook)),
  make('td', {'data-label': t('hooks.format')}, t(hook.format === 'cloudevents' ? 'hooks.cloudevents' : 'hooks.standard'), hook.thin && make('small', {}, t('hooks.thin_short'))),
  make('td', {'data-label': t('hooks.state')}, state(hook)));

export function refresh() {
  const of = client;
  return fill($('hooks'), () => get(`/api/webhooks${of ? `?${new URLSearchParams({client: of})}` : ''}`), ({webhooks}) => {
    const now = JSON.stringify(webhooks);
    if (now !== drawn) $('hooks-table').tBodies[0].replaceChildren(...webhooks.slice(0, most).map(row));
    drawn = now;
    $('hooks-table').hidden = webhooks.length === 0;
    // Only operators see webhooks of more than one client.
    $('hooks-filter').hidden = !of && new Set(webhooks.map((hook) => hook.client ?? '')).size < 2;
    if (webhooks.length > most) return t('hooks.more', {n: number(most), all: number(webhooks.length)});
    return webhooks.length ? '' : t(of ? 'hooks.none_of' : 'hooks.none');
  });
}

async function add() {
  const types = [...document.querySelectorAll('#hook-add [name="type"]:checked')].map((box) => box.value);
  const hook = {
    url: $('hook-url').value.trim(), description: $('hook-note').value.trim(), types, format: $('hook-format').value, signature: $('hook-signature').value, thin: $('hook-thin').checked,
  };
  say($('hook-add-said'), '');
  $('hook-url').removeAttribute('aria-invalid');
  try {
    const made = await send('POST', '/api/webhooks', hook);
    $('hook-add').reset();
    showSecret($('hooks-secret'), t('hooks.added'), made, make('p', {}, make('a', {href: webhookAt(made.id)}, t('hooks.open'))));
    $('hooks-secret').querySelector('.secret').focus();
    await refresh();
  } catch (error) {
    if (error.status === 400) {
      $('hook-url').setAttribute('aria-invalid', 'true');
      $('hook-url').focus();
    }
    say($('hook-add-said'), ...why(error));
  }
}

function begin() {
  $('hook-add').addEventListener('submit', (event) => {
    event.preventDefault();
    once($('hook-add-do'), add);
  });
  $('hooks-filter').addEventListener('submit', (event) => {
    event.preventDefault();
    const name = $('hooks-client').value.trim();
    go(name ? `/webhooks?${new URLSearchParams({client: name})}` : '/webhooks');
  });
  $('hooks-filter').addEventListener('reset', () => go('/webhooks'));
}

export const leave = () => forget($('hooks-secret'));

export function show(id, query) {
  if (!begun) begin();
  begun = true;
  client = query.get('client') ?? '';
  $('hooks-client').value = client;
  leave();
  say($('hook-add-said'), '');
  $('hooks').querySelector('.body').hidden = true;
  return refresh();
}
