// @ts-check
/** A node's result in words, on the node: it stays after the run, wraps, and can be marked and copied. */

import { asWideAsItsNode, make } from "./board/dom.js";

const NAME = "apprentice_text";

/**
 * @param {any} node
 * @param {string} text
 */
export function showText(node, text) {
  const shown = node.widgets?.find((/** @type {any} */ w) => w.name === NAME) ?? add(node);
  shown.element.textContent = text;
  const lines = text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / 44)), 0);
  shown.element.style.minHeight = `${Math.min(180, 14 + 16 * lines)}px`;
  const [width, needed] = node.computeSize?.() ?? node.size;
  node.setSize?.([Math.max(node.size[0], width), Math.max(node.size[1], needed)]);
  node.graph?.setDirtyCanvas?.(true, true);
}

/** @param {any} node */
function add(node) {
  const element = make("div", { class: "apprentice-text", role: "status", tabindex: "0" });
  for (const type of ["keydown", "contextmenu"]) {
    element.addEventListener(type, (/** @type {any} */ event) => { if (!event.ctrlKey && !event.metaKey) event.stopPropagation(); });
  }
  const widget = node.addDOMWidget(NAME, NAME, element, {
    serialize: false, hideOnZoom: false, getMinHeight: () => parseFloat(element.style.minHeight) || 30, getValue: () => element.textContent, setValue: () => {},
  });
  asWideAsItsNode(widget);
  widget.serialize = false;
  return widget;
}
