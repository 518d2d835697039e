// Functions that find and make elements.

export const $ = (id) => document.getElementById(id);

// make returns an element: make('p', {class: 'hint'}, 'text', other, …). Attributes and children
// that are null or false are left out.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null && child !== false && child !== ''));
  return element;
}
