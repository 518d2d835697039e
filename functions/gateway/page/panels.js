// Grafana's panels beside the form, in the light that the page is in.

const dark = matchMedia('(prefers-color-scheme: dark)');

// A new frame each time: to lead an old one elsewhere would be a step that the browser's back button undoes.
function show() {
  for (const frame of document.querySelectorAll('#panels iframe')) {
    const shown = frame.cloneNode();
    shown.src = `${frame.dataset.src}&theme=${dark.matches ? 'dark' : 'light'}`;
    frame.replaceWith(shown);
  }
}

export function begin() {
  show();
  dark.addEventListener('change', show);
}
