// @ts-check
/**
 * Folds advanced widgets away on the canvas too: Vue nodes do so by themselves, LiteGraph wants it said on the widget.
 * The node's menu ("Show Advanced") shows them again. Without this file all are shown, and everything works the same.
 */
// @ts-ignore: ComfyUI's own
import { app } from "../../scripts/app.js";

const NOTHING = -4; // the height of a row that LiteGraph leaves no room for: it adds 4 between rows

/**
 * Marks a widget as advanced; folded, it takes no row.
 * @param {any} node
 * @param {any} widget
 */
function fold(node, widget) {
  widget.advanced = true;
  const layout = widget.computeLayoutSize;
  if (layout && !widget.computeSize) {
    widget.computeLayoutSize = (/** @type {any} */ of) =>
      node.showAdvanced ? layout.call(widget, of) : { minHeight: NOTHING, maxHeight: NOTHING, minWidth: 0 };
    return;
  }
  const size = widget.computeSize;
  widget.computeSize = (/** @type {number} */ width) => {
    if (!node.showAdvanced) return [0, NOTHING];
    return size ? size.call(widget, width) : [width, /** @type {any} */ (window).LiteGraph.NODE_WIDGET_HEIGHT];
  };
}

app.registerExtension({
  name: "Apprentice.Advanced",
  /** @param {any} node Any node that was just made; before a file gives it values and size. */
  nodeCreated(node) {
    const advanced = (node.widgets ?? []).filter((/** @type {any} */ widget) => widget.options?.advanced);
    if (!advanced.length || !node.comfyClass?.startsWith("Apprentice")) return;
    for (const widget of advanced) fold(node, widget);
    node.setSize([node.size[0], node.computeSize()[1]]);
  },
});
