// Addresses: which view of the page is shown, and what its address says.

import {$} from './dom.js';
import {t} from './words.js';

const paths = [
  [/^\/$/, 'try'], [/^\/payments\/?$/, 'payments'], [/^\/payments\/(.+)$/, 'payment'],
  [/^\/accounts$/, 'accounts'], [/^\/accounts\/([^/]+)$/, 'accounts'], [/^\/webhooks$/, 'webhooks'], [/^\/webhooks\/([^/]+)$/, 'webhook'], [/^\/(?:operations|status)$/, 'operations'],
];

// match returns the view of a path and the id in it. An unknown path has the view that says so.
export function match(pathname) {
  for (const [path, name] of paths) {
    const found = path.exec(pathname);
    if (!found) continue;
    try {
      return {name, id: decodeURIComponent(found[1] ?? '')};
    } catch {
      break; // it is not encoded properly
    }
  }
  return {name: 'lost', id: ''};
}

export const paymentAt = (key) => `/payments/${encodeURIComponent(key)}`;
export const accountAt = (id) => `/accounts/${encodeURIComponent(id)}`;
export const webhookAt = (id) => `/webhooks/${encodeURIComponent(id)}`;

let views;
let shown; // the address that is shown, without its hash
let current; // the name of the view that is shown

const here = () => location.pathname + location.search;

// withLanguage keeps the chosen language in the address, so that a shared address has it too.
function withLanguage(address) {
  const lang = new URLSearchParams(location.search).get('lang');
  const url = new URL(address, location.origin);
  if (lang && !url.searchParams.has('lang')) url.searchParams.set('lang', lang);
  return url.pathname + url.search + url.hash;
}

// go shows another address. It resolves to false if that is shown already.
export async function go(address) {
  const next = withLanguage(address);
  if (next === shown) return false;
  history.pushState(null, '', next);
  await show(true);
  return true;
}

// title names the view in the browser's tab and history.
export function title(text) {
  document.title = `${text} · pgw`;
}

async function show(moved) {
  if (here() === shown) return;
  shown = here();
  const {name, id} = match(location.pathname);
  const query = new URLSearchParams(location.search);
  query.delete('lang');
  const turned = name !== current;
  if (turned) views[current]?.leave?.();
  current = name;
  for (const element of document.querySelectorAll('.view')) element.hidden = element.id !== `view-${name}`;
  for (const link of document.querySelectorAll('.top nav a[data-view]')) {
    if (link.dataset.view === name || link.dataset.view === `${name}s`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  for (const link of document.querySelectorAll('.languages a')) {
    const other = new URLSearchParams(location.search);
    other.set('lang', link.lang);
    link.href = `${location.pathname}?${other}`;
  }
  title(t(`view.${name}`));
  if (moved && turned) {
    scrollTo(0, 0);
    $(`view-${name}`).querySelector('h1')?.focus({preventScroll: true});
  }
  await views[name]?.show(id, query);
}

// refresh reads again what the view shows.
export const refresh = () => views[current]?.refresh?.();

// begin follows the addresses. views have show(id, query), refresh() if what they show changes, and
// leave() if another view must not find what they leave behind.
export function begin(all) {
  views = all;
  addEventListener('popstate', () => show(false));
  document.addEventListener('click', (event) => {
    const link = event.target.closest?.('a[href]');
    if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const url = new URL(link.href);
    if (url.origin !== location.origin || link.target || link.lang || link.hasAttribute('download') || url.hash || match(url.pathname).name === 'lost') return;
    event.preventDefault();
    go(url.pathname + url.search);
  });
  return show(false);
}
