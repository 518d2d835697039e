// Words, amounts and times in the language of the page.

export const language = document.documentElement.lang;

const words = await (await fetch(`/page/i18n/${language}.json`)).json();

// t returns the words for a key, with {names} filled in.
export function t(key, values = {}) {
  const text = words[key];
  if (text === undefined) {
    console.error(`no words for ${key}`);
    return key;
  }
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? '');
}

// has says whether there are words for a key that comes from outside.
export const has = (key) => Object.hasOwn(words, key);

const formats = new Map();
function format(options) {
  const id = JSON.stringify(options);
  if (!formats.has(id)) formats.set(id, new Intl.NumberFormat(language, options));
  return formats.get(id);
}

// money formats an amount, which is a decimal string or a whole number. Strings stay exact.
export function money(amount, currency, digits) {
  if (digits === undefined && currency === 'IDR') digits = 0;
  const options = {style: 'currency', currency, currencyDisplay: currency === 'IDR' && language === 'id' ? 'symbol' : 'code'};
  if (digits !== undefined) options.minimumFractionDigits = options.maximumFractionDigits = digits;
  try {
    return format(options).format(amount);
  } catch {
    return `${currency} ${amount}`; // an unknown currency
  }
}

export const rupiah = (amount) => money(amount, 'IDR');

// price formats what one unit costs, with all the digits of the rate.
export const price = (rate, currency = 'IDR') => money(rate, currency, digits(rate));

// decimal formats a decimal string with all its digits, without a currency.
export const decimal = (text) => format({minimumFractionDigits: digits(text), maximumFractionDigits: digits(text)}).format(text);

const digits = (text) => (text.split('.')[1] ?? '').length;

export const number = (value, digits = 0) => format({minimumFractionDigits: digits, maximumFractionDigits: digits}).format(value);

// duration formats milliseconds; long times are shown in seconds.
export function duration(ms) {
  if (ms >= 1000) return `${number(ms / 1000, 2)} s`;
  return `${number(ms, ms < 10 ? 2 : ms < 100 ? 1 : 0)} ms`;
}

const clock = new Intl.DateTimeFormat(language, {hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23'});
const day = new Intl.DateTimeFormat(language, {day: 'numeric', month: 'short'});

// time formats a time: the time of day, and the date if it was not today.
export function time(at) {
  const then = new Date(at);
  const today = then.toDateString() === new Date().toDateString();
  return today ? clock.format(then) : `${day.format(then)}, ${clock.format(then)}`;
}

const zoned = new Intl.DateTimeFormat(language, {
  year: 'numeric', month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23', timeZoneName: 'longOffset',
});

// zonedTime formats a time in the reader's zone, with the zone's offset.
export const zonedTime = (at) => zoned.format(new Date(at));

// between returns the milliseconds from one time to another. The API's times are exact to the
// microsecond; Date is not.
export const between = (from, to) => millis(to) - millis(from);

function millis(at) {
  return Date.parse(at) + Number(`0.${/\.\d{3}(\d+)/.exec(at)?.[1] ?? 0}`);
}

const names = new Intl.DisplayNames(language, {type: 'currency'});

export function currencyName(code) {
  try {
    return names.of(code);
  } catch {
    return code;
  }
}
