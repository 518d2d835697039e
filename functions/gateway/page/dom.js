// Finding and making elements.

export const $ = (id) => document.getElementById(id);

// make gives an element: make('p', {class: 'hint'}, 'text', other, …). What is null or false is left out.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== false && child !== ''));
  return element;
}
