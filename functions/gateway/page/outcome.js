// The outcome of a payment in plain words, and the next steps.

import {$, make} from './dom.js';
import {settled, traceOf, undecided} from './payment.js';
import {has, money, t, time} from './words.js';

// kind is how an outcome looks: good, bad or open (not known yet).
export function kind(answer) {
  if (settled(answer)) return 'good';
  return undecided(answer) ? 'open' : 'bad';
}

// words returns the texts for an answer: a title, and what to do.
export function words(answer) {
  const reason = has(`outcome.${answer.reason}`) ? answer.reason : 'other';
  const values = {text: answer.message ?? answer.reason, deadline: answer.deadline ? time(answer.deadline) : ''};
  return {title: t(`outcome.${reason}`), text: t(`outcome.${reason}_text`, values)};
}

export function traceLink(key, label, known) {
  const template = document.documentElement.dataset.trace;
  const trace = known ?? traceOf(key);
  if (!template || !trace) return null;
  return make('a', {href: template.replace('{trace}', trace)}, label);
}

export function showRequest(payment) {
  const values = {amount: money(payment.amount, payment.currency), sender: payment.sender_id, receiver: payment.receiver_id};
  $('outcome').className = 'outcome';
  $('outcome').replaceChildren(make('p', {class: 'title'}, t('way.under_way')), make('p', {}, t('way.request', values)));
  $('next').hidden = true;
  $('balances').hidden = true;
}

// show shows the outcome. actions are {again, detail}, the actions of its buttons.
export function show(payment, answer, actions) {
  const {title, text} = words(answer);
  const values = {amount: money(payment.amount, payment.currency), sender: payment.sender_id, receiver: payment.receiver_id};
  $('outcome').className = `outcome ${kind(answer)}`;
  $('outcome').replaceChildren(make('p', {class: 'title'}, title), make('p', {}, text), make('p', {class: 'hint'}, t('way.request', values)));

  const button = (label, action) => make('button', {type: 'button', class: 'quiet', onclick: action}, label);
  const recorded = settled(answer) || answer.reason === 'queue_timeout';
  $('next').replaceChildren(
    make('code', {}, [answer.http_status || '', answer.status, answer.reason].filter(Boolean).join(' · ')),
    ...[
      settled(answer) && button(t('next.again'), actions.again),
      undecided(answer) && button(t('next.retry'), actions.again),
      recorded && button(t(settled(answer) ? 'next.detail' : 'next.look'), actions.detail),
      traceLink(payment.idempotency_key, t('next.trace')),
    ].filter(Boolean));
  $('next').hidden = false;
}

// showBalances shows both balances before and after the payment, as form.moved returns them.
export function showBalances(before, after) {
  const pairs = after.map((now) => [before.find((was) => was.id === now.id && was.currency === now.currency), now]).filter(([was]) => was);
  $('balances').hidden = pairs.length === 0;
  $('balances').tBodies[0].replaceChildren(...pairs.map(([was, now]) => make('tr', {},
    make('th', {scope: 'row'}, now.id), make('td', {}, money(was.amount, was.currency)),
    make('td', {class: Number(now.amount) > Number(was.amount) ? 'more' : Number(now.amount) < Number(was.amount) ? 'less' : ''}, money(now.amount, now.currency)))));
}
