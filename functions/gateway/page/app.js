// The page: each address shows one view.

import * as key from './key.js';
import * as router from './router.js';
import * as accounts from './views/accounts.js';
import * as operations from './views/operations.js';
import * as payment from './views/payment.js';
import * as payments from './views/payments.js';
import * as attempt from './views/try.js';

const every = 5000; // ms between two reads of what other clients may have changed

key.begin(router.refresh);
await router.begin({'try': attempt, payments, payment, accounts, operations});
document.documentElement.dataset.ready = 'true';
setInterval(() => {
  if (document.visibilityState === 'visible' && !key.isAsking()) router.refresh();
}, every);
