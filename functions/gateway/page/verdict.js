// What a reconciliation has found, in the words of the page. pgw reconcile says it in English sentences.

import {make} from './dom.js';
import {number, t, zonedTime} from './words.js';

const compared = /The whole ledger was added up \((\d+) accounts\), and (\d+) requested payments and (\d+) fundings were compared with their events, (?:as far back as the topics go|since (\S+))\.$/;
const differs = /^The books do not agree: \d+ breaches \((.+)\)\. /;
const failed = /^It could not be checked whether the books agree: (.*)$/;

// verdict returns elements that say a verdict's text. An unknown text stays as it is.
export function verdict(text) {
  const [found, why, all] = [differs.exec(text), failed.exec(text), compared.exec(text)];
  if (why) return [make('p', {}, t('verdict.failed')), make('p', {lang: 'en'}, why[1])];
  if (!all) return [make('p', {lang: 'en'}, text)];
  const [, accounts, payments, fundings, since] = all;
  return [found && make('p', {}, t('verdict.found', {checks: found[1]})), make('p', {}, t('verdict.compared', {
    accounts: number(accounts), payments: number(payments), fundings: number(fundings), since: since ? t('verdict.since', {time: zonedTime(since)}) : t('verdict.all'),
  }))].filter(Boolean);
}
