// @ts-check
/**
 * Values of saved files on our nodes. Files of version 0.4.0 may hold a node's progress text behind its widgets; where a node has
 * got more widgets since, that text falls on one of them, and the server would refuse a text for a number.
 */

/**
 * Give numbers and switches that a file filled with anything else what they began with.
 * @param {{name: string, value: any}[]} widgets after the file is read
 * @param {Map<string, any>} first the values they began with
 */
export function withoutStrays(widgets, first) {
  for (const widget of widgets) {
    const kind = typeof first.get(widget.name);
    if ((kind === "number" || kind === "boolean") && typeof widget.value !== kind) widget.value = first.get(widget.name);
  }
}

/** @param {any} node a new one, before its file is read */
export function mendWhenRead(node) {
  const first = new Map((node.widgets ?? []).map((/** @type {any} */ widget) => [widget.name, widget.value]));
  const { onConfigure } = node;
  node.onConfigure = function (/** @type {any[]} */ ...args) {
    withoutStrays(this.widgets ?? [], first);
    return onConfigure?.apply(this, args);
  };
}
