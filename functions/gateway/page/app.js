// The page: each address shows one view.

import {$} from './dom.js';
import * as key from './key.js';
import * as router from './router.js';
import * as accounts from './views/accounts.js';
import * as operations from './views/operations.js';
import * as payment from './views/payment.js';
import * as payments from './views/payments.js';
import * as attempt from './views/try.js';
import * as webhook from './views/webhook.js';
import * as webhooks from './views/webhooks.js';
import {t} from './words.js';

const every = 5000; // ms between two reads of what other clients may have changed
// Reading wakes functions that are scaled to zero, and a page may stay open for days. So reading stops
// after a while without input, and at once while the page is not visible.
const unattended = 600_000; // ms
const inputs = ['pointerdown', 'pointermove', 'keydown', 'wheel', 'touchstart', 'focus'];

let touched = performance.now(); // the latest input
let paused = false;

function pause(now) {
  if (paused !== now) $('paused').textContent = now ? t('status.paused') : '';
  paused = now;
}

function attend() {
  touched = performance.now();
  if (!paused) return;
  pause(false);
  router.refresh();
}

key.begin(router.refresh);
await router.begin({'try': attempt, payments, payment, accounts, operations, webhooks, webhook});
document.documentElement.dataset.ready = 'true';
for (const input of inputs) addEventListener(input, attend, {passive: true});
setInterval(() => {
  if (document.visibilityState !== 'visible' || key.isAsking()) return;
  pause(performance.now() - touched >= unattended);
  if (!paused) router.refresh();
}, every);
