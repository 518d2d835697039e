// The page is complete without this script. It adds a search, buttons to copy examples, and forms to try the API.
'use strict';

const make = (tag, attributes = {}, ...children) => {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  e.append(...children);
  return e;
};

// Search: the links of the contents whose own words, or whose part of the page, have the words.
const nav = document.querySelector('nav');
const search = make('input', {type: 'search', placeholder: 'Search', 'aria-label': 'Search this page'});
nav.firstElementChild.after(search);
const links = [...nav.querySelectorAll('li a[href^="#"]')].map((link) => {
  const target = document.getElementById(link.hash.slice(1));
  const part = target.closest('section') ?? target;
  return {item: link.closest('li'), words: `${link.textContent} ${part.textContent}`.toLowerCase()};
});
search.addEventListener('input', () => {
  const wanted = search.value.toLowerCase().split(/\s+/);
  for (const {item, words} of links) item.hidden = !wanted.every((word) => words.includes(word));
});

// Copy: a button before each example. Without access to the clipboard the text is selected.
for (const pre of document.querySelectorAll('main pre')) {
  const button = make('button', {type: 'button', class: 'copy'}, 'Copy');
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(pre.textContent);
      button.textContent = 'Copied';
      setTimeout(() => { button.textContent = 'Copy'; }, 2000);
    } catch {
      getSelection().selectAllChildren(pre);
    }
  });
  pre.before(button);
}

// Try it: requests to this gateway. The key stays in memory, and is the same for all forms.
let key = '';
for (const section of document.querySelectorAll('section[data-path^="/api/"]')) {
  const {method, path} = section.dataset;
  const form = make('form');
  const fields = [...section.querySelectorAll('[data-parameter]')].map(({dataset}) => {
    const input = make('input', {type: 'text', autocomplete: 'off'});
    form.append(make('label', {}, `${dataset.parameter} `, input));
    return {...dataset, input};
  });
  const secret = make('input', {type: 'password', autocomplete: 'off'});
  secret.addEventListener('change', () => { key = secret.value; });
  form.append(make('label', {}, 'X-API-Key ', secret));
  const example = section.querySelector('pre.body');
  const body = method === 'POST' ? make('textarea', {rows: 10, spellcheck: 'false', 'aria-label': 'Body'}) : undefined;
  if (body) {
    body.value = example?.textContent ?? '';
    form.append(body);
  }
  const answer = make('pre', {role: 'status'});
  form.append(make('button', {}, 'Send'), answer);
  const details = make('details', {class: 'try'}, make('summary', {}, 'Try it'), form);
  details.addEventListener('toggle', () => { secret.value = key; });
  section.append(details);

  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    const headers = {};
    if (key) headers['X-API-Key'] = key;
    if (body) headers['Content-Type'] = 'application/json';
    const query = new URLSearchParams();
    let to = path;
    for (const {parameter, in: where, input} of fields) {
      if (where === 'path') to = to.replace(`{${parameter}}`, encodeURIComponent(input.value));
      else if (input.value === '') continue;
      else if (where === 'header') headers[parameter] = input.value;
      // The entries of an object are written as NAME=VALUE.
      else if (input.value.startsWith(`${parameter}.`)) query.append(...input.value.split(/=(.*)/s, 2));
      else query.append(parameter, input.value);
    }
    if (query.size) to += `?${query}`;
    answer.textContent = '…';
    try {
      const got = await fetch(to, {method, headers, body: body?.value});
      const text = await got.text();
      let shown = text;
      try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* as it is */ }
      answer.textContent = `${method} ${to}\n${got.status} ${got.statusText}\n\n${shown}`;
    } catch (error) {
      answer.textContent = `${method} ${to}\n${error.message}`;
    }
  });
}
