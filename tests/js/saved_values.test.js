// node --test tests/js
import assert from "node:assert/strict";
import test from "node:test";

import { mendWhenRead } from "../../web/saved_values.js";

test("a text that a file put on a number or a switch is dropped, and everything else stays", () => {
  const node = { widgets: [["prompt", "a"], ["variety", 0], ["first_step", false], ["count", 3]].map(([name, value]) => ({ name, value })) };
  mendWhenRead(node);
  for (const [i, value] of ["panda", "4 of 8 accepted", null, 7].entries()) node.widgets[i].value = value;
  node.onConfigure({});
  assert.deepEqual(node.widgets.map((widget) => widget.value), ["panda", 0, false, 7]);
});
