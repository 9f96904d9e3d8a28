// @ts-check
/** Making elements; texts are set as texts, never as HTML: prompts come from strangers. */

/**
 * @param {string} tag
 * @param {Record<string, any>} [properties] `class`, `style`, `data-…`, `aria-…` and `role` as attributes; `on…` as listeners
 * @param {...(Node|string|null)} children
 * @returns {any}
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** @param {string} tag @param {Record<string, any>} properties @param {...Element} children */
export function makeSvg(tag, properties, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** A number as there is room for. @param {number|null} value */
export function short(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

/**
 * Where a file of ComfyUI's can be had.
 * @param {{apiURL: (route: string) => string}} api
 * @param {import("./state.js").File} file
 * @param {boolean} [small] its thumbnail
 */
export function address(api, file, small = false) {
  const query = new URLSearchParams({ filename: small ? file.thumb : file.filename, subfolder: file.subfolder, type: file.type });
  return api.apiURL(`/view?${query}`);
}

/**
 * A widget as wide as its node, always: the newer front end's side panel writes its own width into the widgets that it shows.
 * @param {any} widget
 */
export function asWideAsItsNode(widget) {
  Object.defineProperty(widget, "width", { configurable: true, get: () => undefined, set: () => {} });
}
