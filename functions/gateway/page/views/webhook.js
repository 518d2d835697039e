// One webhook: what it is, what was sent to it, and what can be done with it.

import {get} from '../api.js';
import {$, make} from '../dom.js';
import {forget, once, send, showSecret, state, typesOf} from '../hook.js';
import {go, paymentAt, webhookAt} from '../router.js';
import {fill, say, why} from '../section.js';
import {duration, has, t, zonedTime} from '../words.js';

const page = 20;
const looks = {delivered: 'good', failed: 'bad'};

let begun = false;
let shown = ''; // the webhook's id
let wanted = new URLSearchParams(); // which deliveries are shown
let drawn = ['', '']; // the webhook, and its deliveries
let asked; // what the dialog confirms
let known; // the webhook that is shown
let before; // the webhook as it was when the user began to change it

const path = (rest = '') => `/api/webhooks/${encodeURIComponent(shown)}${rest}`;
const sentAt = (query) => (query.size ? `${webhookAt(shown)}?${query}` : webhookAt(shown));
const facts = (...pairs) => pairs.filter(([, value]) => value).flatMap(([label, value]) => [make('dt', {}, t(label)), make('dd', {}, value)]);
const word = (name) => (has(`attempt.${name}`) ? t(`attempt.${name}`) : name);

function draw(hook) {
  const now = JSON.stringify(hook);
  if (now === drawn[0]) return;
  drawn[0] = now;
  known = hook;
  $('hook-heading').textContent = hook.url;
  $('hook-facts').replaceChildren(...facts(['hooks.state', state(hook)], ['hooks.client', hook.client], ['hook.for', hook.description], ['hooks.types', typesOf(hook)],
    ['hooks.format', t(hook.format === 'cloudevents' ? 'hooks.cloudevents' : 'hooks.standard')], ['hooks.thin', hook.thin && t('hooks.thin_short')],
    ['hooks.signature', t(hook.signature === 'v1a' ? 'hooks.v1a' : 'hooks.v1')], ['hook.public_key', hook.public_key && make('code', {}, hook.public_key)],
    ['hook.old_secret', hook.old_secret_until && zonedTime(hook.old_secret_until)], ['hook.made', zonedTime(hook.created_at)]));
  const button = (label, act) => make('button', {type: 'button', class: 'quiet', onclick: (event) => once(event.currentTarget, act)}, t(label));
  $('hook-actions').replaceChildren(
    hook.enabled ? button('hook.test', test) : '',
    button('hook.change', edit),
    button('hook.rotate', () => ask('hook.rotate', 'hook.rotate_text', rotate)),
    hook.enabled ? button('hook.disable', () => enable(false)) : button('hook.enable', () => enable(true)),
    button('hook.delete', () => ask('hook.delete', 'hook.delete_text', remove)));
}

function attempt(a) {
  return make('li', {}, make('span', {class: `state ${a.result === 'delivered' ? 'good' : 'bad'}`}, [a.code, word(a.result)].filter(Boolean).join(' · ')),
    make('small', {}, `${zonedTime(a.at)} · ${duration(a.ms)}`), a.answer && make('code', {}, a.answer));
}

function row(d) {
  const again = make('button', {
    type: 'button', class: 'quiet', 'aria-label': `${t('hook.again')}: ${d.type} ${d.idempotency_key ?? d.webhook_id}`,
    onclick: (event) => once(event.currentTarget, () => redeliver({webhook_id: d.webhook_id})),
  }, t('hook.again'));
  return make('tr', {},
    make('th', {scope: 'row'}, make('time', {datetime: d.created_at}, zonedTime(d.created_at)), make('code', {}, d.type)),
    make('td', {'data-label': t('letters.key')}, d.idempotency_key ? make('a', {href: paymentAt(d.idempotency_key)}, d.idempotency_key) : '–'),
    make('td', {'data-label': t('hooks.state')}, make('span', {class: `state ${looks[d.status] ?? 'open'}`}, has(`delivery.${d.status}`) ? t(`delivery.${d.status}`) : d.status),
      d.next_attempt_at && make('small', {}, t('hook.next', {time: zonedTime(d.next_attempt_at)}))),
    make('td', {'data-label': t('hook.attempts')}, d.attempts.length ? make('ol', {class: 'attempts'}, ...d.attempts.map(attempt)) : '–'),
    make('td', {'data-label': t('letters.actions')}, again));
}

function drawSent(got) {
  const [older, newest] = [new URLSearchParams(wanted), new URLSearchParams(wanted)];
  older.set('cursor', got.next_cursor ?? '');
  newest.delete('cursor');
  $('sent-older').hidden = !got.next_cursor;
  $('sent-older').href = sentAt(older);
  $('sent-newest').hidden = !wanted.has('cursor');
  $('sent-newest').href = sentAt(newest);
  const now = JSON.stringify(got.deliveries);
  // A redraw takes the focus away from a button of the table, so there is one only for news.
  if (now !== drawn[1]) $('sent-table').tBodies[0].replaceChildren(...got.deliveries.map(row));
  drawn[1] = now;
  $('sent-table').hidden = got.deliveries.length === 0;
  return got.deliveries.length ? '' : t(wanted.size ? 'hook.none_such' : 'hook.nothing');
}

export function refresh() {
  const query = new URLSearchParams([...wanted, ['limit', page]]);
  return Promise.all([fill($('hook'), () => get(path()), draw, t('hook.absent')), fill($('sent'), () => get(path(`/deliveries?${query}`)), drawSent, t('hook.absent'))]);
}

// tried runs an action, and says what became of it.
async function tried(act) {
  try {
    say($('hook-done'), await act());
    await refresh();
  } catch (error) {
    say($('hook-done'), ...why(error, t('hook.absent')));
  }
}

const test = () => tried(async () => {
  await send('POST', path('/test'));
  return t('hook.tested');
});

const enable = (enabled) => tried(async () => {
  await send('PATCH', path(), {enabled});
  return t(enabled ? 'hook.is_enabled' : 'hook.is_disabled');
});

const redeliver = (which) => tried(async () => {
  const {redelivered} = await send('POST', path('/redeliver'), which);
  return t(redelivered === 1 ? 'hook.redelivered_one' : 'hook.redelivered', {n: redelivered});
});

// ask shows the dialog, which does the action when the user confirms it.
function ask(heading, text, act) {
  asked = act;
  $('hook-ask-heading').textContent = t(heading);
  $('hook-ask-text').textContent = t(text);
  $('hook-ask-said').textContent = '';
  $('hook-ask').showModal();
}

// edit shows the dialog that changes the webhook.
function edit() {
  before = known;
  $('change-url').value = before.url;
  $('change-note').value = before.description;
  for (const box of $('hook-change-form').querySelectorAll('[name="type"]')) box.checked = before.types.includes(box.value);
  $('change-format').value = before.format;
  $('change-thin').checked = before.thin;
  $('change-url').removeAttribute('aria-invalid');
  say($('hook-change-said'), '');
  $('hook-change').showModal();
}

// edited returns the fields that the user has changed. What somebody else has changed meanwhile stays.
function edited() {
  const types = [...$('hook-change-form').querySelectorAll('[name="type"]:checked')].map((box) => box.value);
  const now = {
    url: $('change-url').value.trim(), description: $('change-note').value.trim(), types, format: $('change-format').value, thin: $('change-thin').checked,
  };
  const comparable = (value) => JSON.stringify(Array.isArray(value) ? value.toSorted() : value);
  return Object.fromEntries(Object.entries(now).filter(([name, value]) => comparable(value) !== comparable(before[name])));
}

async function save() {
  const fields = edited();
  say($('hook-change-said'), '');
  $('change-url').removeAttribute('aria-invalid');
  try {
    if (Object.keys(fields).length) await send('PATCH', path(), fields);
  } catch (error) {
    if (error.status === 400) {
      $('change-url').setAttribute('aria-invalid', 'true');
      $('change-url').focus();
    }
    say($('hook-change-said'), ...why(error, t('hook.absent')));
    return;
  }
  $('hook-change').close();
  say($('hook-done'), t('hook.changed'));
  await refresh();
}

async function rotate() {
  const hook = await send('POST', path('/rotate'));
  $('hook-ask').close();
  showSecret($('hook-secret'), t('hook.rotated'), hook);
  $('hook-secret').querySelector('.secret').focus();
  say($('hook-done'), '');
  await refresh();
}

async function remove() {
  await send('DELETE', path());
  $('hook-ask').close();
  await go('/webhooks');
}

function begin() {
  $('hook-ask-form').addEventListener('submit', (event) => {
    event.preventDefault();
    once($('hook-ask-do'), async () => {
      try {
        await asked();
        $('hook-ask').close();
      } catch (error) {
        say($('hook-ask-said'), ...why(error, t('hook.absent')));
      }
    });
  });
  $('hook-ask-close').addEventListener('click', () => $('hook-ask').close());
  $('hook-change-form').addEventListener('submit', (event) => {
    event.preventDefault();
    once($('hook-change-do'), save);
  });
  $('hook-change-close').addEventListener('click', () => $('hook-change').close());
  $('sent-status').addEventListener('change', () => {
    const status = $('sent-status').value;
    go(sentAt(new URLSearchParams(status ? {status} : {})));
  });
  $('again-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const since = $('again-since').value;
    $('again-said').textContent = since ? '' : t('problem.missing');
    if (since) once($('again-do'), () => redeliver({since: new Date(since).toISOString(), delivered: $('again-delivered').checked}));
  });
}

export const leave = () => forget($('hook-secret'));

export function show(id, query) {
  if (!begun) begin();
  begun = true;
  if (id !== shown) {
    $('hook-heading').textContent = t('view.webhook');
    leave();
  }
  shown = id;
  wanted = query;
  drawn = ['', ''];
  $('sent-status').value = query.get('status') ?? '';
  $('again-said').textContent = '';
  say($('hook-done'), '');
  for (const section of ['hook', 'sent']) $(section).querySelector('.body').hidden = true;
  return refresh();
}
