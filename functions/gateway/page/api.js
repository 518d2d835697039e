// Every request that the page makes goes through api().

import {ask, key} from './key.js';

// Problem is an error answer in the form of RFC 9457. Status 0 means that there was no answer.
export class Problem extends Error {
  constructor(status, title, detail = '') {
    super(detail ? `${title}: ${detail}` : title);
    this.status = status;
  }
}

// api sends a request to the gateway. If the gateway needs a key, api asks the user for one and
// sends the request again.
export async function api(path, options = {}) {
  for (;;) {
    const headers = new Headers(options.headers);
    if (key()) headers.set('X-API-Key', key());
    let response;
    try {
      response = await fetch(path, {...options, headers});
    } catch (error) {
      throw new Problem(0, String(error.message ?? error));
    }
    if (response.status !== 401) return response;
    await ask(headers.get('X-API-Key'));
  }
}

// get reads a JSON answer.
export async function get(path) {
  const response = await api(path);
  if (!response.ok) throw await problem(response);
  return response.json();
}

export async function problem(response) {
  try {
    const {title, detail} = await response.json();
    return new Problem(response.status, title, detail);
  } catch {
    return new Problem(response.status, `${response.status} ${response.statusText}`);
  }
}

// events reads a stream of server-sent events. It knows only the fields that the gateway writes.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf('\n\n')) >= 0; text = text.slice(end + 2)) {
      const event = {name: 'message', data: ''};
      for (const line of text.slice(0, end).split('\n')) {
        if (line.startsWith('event: ')) event.name = line.slice(7);
        if (line.startsWith('data: ')) event.data += line.slice(6);
      }
      yield {name: event.name, data: JSON.parse(event.data)};
    }
  }
}
