// Grafana's panels beside the form, in the light that the page is in.

import {$} from './dom.js';

const dark = matchMedia('(prefers-color-scheme: dark)');

// Frames that are new each time: to lead an old one elsewhere would be a step that the browser's back button undoes.
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
