// Files for spreadsheets.

import {make} from './dom.js';

const saving = 60_000; // ms that the browser has to save a file

// cell quotes a cell (RFC 4180). A text that a spreadsheet would take for a formula gets an
// apostrophe. Negative amounts stay.
function cell(value) {
  const text = String(value);
  const safe = /^[=+@\t\r]/.test(text) || (text.startsWith('-') && !/^-[\d.]+$/.test(text)) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

// saveBlob lets the browser save a file.
export function saveBlob(name, blob) {
  const url = URL.createObjectURL(blob);
  make('a', {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), saving);
}

export function save(name, rows) {
  saveBlob(name, new Blob([rows.map((row) => `${row.map(cell).join(',')}\r\n`).join('')], {type: 'text/csv'}));
}
