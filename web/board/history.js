// @ts-check
/** Results that the server took from its cache: of those it says nothing again, but its history has them. */

/**
 * A node and all that is before it, as text: what runs with the same text has the same result.
 * @param {Record<string, {class_type: string, inputs: Record<string, any>}>} prompt in API format
 * @param {string} id
 */
export function upstream(prompt, id) {
  const reached = new Set([id]);
  for (const key of reached) {
    for (const value of Object.values(prompt[key]?.inputs ?? {})) {
      if (Array.isArray(value) && value.length === 2 && prompt[value[0]]) reached.add(String(value[0]));
    }
  }
  return JSON.stringify([...reached].sort().map((key) => {
    const { class_type, inputs } = prompt[key] ?? {};
    return [key, class_type, Object.entries(inputs ?? {}).sort(([a], [b]) => (a < b ? -1 : 1))];
  }));
}

/**
 * The boards of a node from the newest run that made them of what the run `promptId` had before it; the judge's first.
 * @param {Record<string, any>} history as /history gives it, oldest first
 * @param {string} promptId
 * @param {string} id of the node, as the server has it
 * @returns {any[]}
 */
export function boardsOf(history, promptId, id) {
  const now = history[promptId]?.prompt?.[2];
  if (!now) return [];
  const wanted = upstream(now, id);
  for (const { prompt, outputs, meta } of Object.values(history).reverse()) {
    if (upstream(prompt[2], id) !== wanted) continue;
    const its = Object.entries(outputs ?? {}).filter(([key, output]) => output?.apprentice_board && (meta?.[key]?.display_node ?? key) === id);
    if (its.length) return its.map(([, output]) => output.apprentice_board[0]).sort((a, b) => Number(a.stage === "improved") - Number(b.stage === "improved"));
  }
  return [];
}

/**
 * After each run: boards whose nodes came from the cache show that result, and not another run's.
 * @param {any} api ComfyUI's
 * @param {(id: string) => any} boardAt the board of a node as the server has it
 */
export function watchCache(api, boardAt) {
  /** @type {WeakMap<any, string>} what each board shows, as `upstream` tells it */
  const shown = new WeakMap();
  let run = { id: "", cached: /** @type {string[]} */ ([]), ran: new Set() };
  const ask = (/** @type {string} */ which) => api.fetchApi(`/history${which}`).then((/** @type {Response} */ answer) => answer.json());

  const settle = async ({ id: promptId, cached, ran } = run) => {
    const ids = [...new Set([...cached, ...ran])].filter(boardAt);
    if (!ids.length) return;
    const prompt = (await ask(`/${promptId}`))[promptId]?.prompt?.[2];
    if (!prompt) return;
    const stale = ids.filter((id) => !ran.has(id) && shown.get(boardAt(id)) !== upstream(prompt, id));
    const history = stale.length ? await ask("?max_items=64") : {};
    for (const id of stale) boardAt(id)?.fill(boardsOf(history, promptId, id));
    for (const id of ids) if (boardAt(id)) shown.set(boardAt(id), upstream(prompt, id));
  };

  api.addEventListener("execution_start", (/** @type {CustomEvent} */ { detail }) => { run = { id: detail.prompt_id, cached: [], ran: new Set() }; });
  api.addEventListener("execution_cached", (/** @type {CustomEvent} */ { detail }) => { run.cached = detail.nodes; });
  api.addEventListener("executed", (/** @type {CustomEvent} */ { detail }) => {
    if (detail.output?.apprentice_board) run.ran.add(String(detail.display_node ?? detail.node));
  });
  api.addEventListener("executing", (/** @type {CustomEvent} */ { detail }) => {
    if (detail === null) settle().catch(() => {}); // without the history the board stays as it is
  });
}
