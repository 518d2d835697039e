// Grafana's panels beside the form, in the page's light or dark theme.

import {$} from './dom.js';

const dark = matchMedia('(prefers-color-scheme: dark)');

// The frames are new each time. To change the address of an old one would add a step to the
// browser's history.
function show() {
  const panels = $('panels').querySelector('template').content.cloneNode(true);
  for (const frame of panels.children) frame.src = `${frame.dataset.src}&theme=${dark.matches ? 'dark' : 'light'}`;
  for (const old of $('panels').querySelectorAll('iframe')) old.remove();
  $('panels').append(panels);
}

export function begin() {
  if (!$('panels')) return; // there is no Grafana
  show();
  dark.addEventListener('change', show);
}
