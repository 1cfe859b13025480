// A conversation with its branches.
//
// chat: { id, title, updated, nodes, leaf }. A node knows its parent by index, -1 for none, and comes after it. leaf is
// the last node of the branch that is shown. Nodes, by role:
//   user       { text }
//   assistant  { items, status, stats, error }: items as the model made them, in order
//                { type: "reasoning", text, seconds }, { type: "message", text, phase } and
//                { type: "call", call_id, name, arguments }; status "done", "running", "stopped", "cut" or "failed"
//   tool       { outputs }: {call_id: text} of all calls of its parent

export function newChat() {
  return { id: crypto.randomUUID?.() ?? String(Math.random()).slice(2), title: "", updated: Date.now(), nodes: [], leaf: -1 };
}

// Adds a node and shows its branch; the node's index.
export function add(chat, parent, node) {
  chat.nodes.push({ parent, ...node });
  chat.leaf = chat.nodes.length - 1;
  chat.updated = Date.now();
  return chat.leaf;
}

// The indices of the nodes of the branch that is shown, the first one first.
export function path(chat, leaf = chat.leaf) {
  const found = [];
  for (let i = leaf; i >= 0; i = chat.nodes[i].parent) found.unshift(i);
  return found;
}

// The indices of a node and of those that stand in its place in other branches.
export function siblings(chat, index) {
  const { parent, role } = chat.nodes[index];
  return chat.nodes.flatMap((node, i) => (node.parent === parent && node.role === role ? [i] : []));
}

// Shows the newest branch that goes through a node.
export function choose(chat, index) {
  const within = new Set([index]);
  chat.nodes.forEach((node, i) => { if (within.has(node.parent)) within.add(i); });
  chat.leaf = Math.max(...within);
}

export const calls = node => node.items.filter(item => item.type === "call");

// What /v1/responses takes of the nodes up to a leaf.
export function toInput(chat, leaf) {
  return path(chat, leaf).flatMap(i => {
    const node = chat.nodes[i];
    if (node.role === "user") return [{ role: "user", content: node.text }];
    if (node.role === "tool") {
      return Object.entries(node.outputs).map(([call_id, output]) => ({ type: "function_call_output", call_id, output }));
    }
    return node.items.map(item => {
      if (item.type === "reasoning") return { type: "reasoning", content: [{ type: "reasoning_text", text: item.text }] };
      if (item.type === "call") {
        return { type: "function_call", call_id: item.call_id, name: item.name, arguments: item.arguments };
      }
      return { role: "assistant", content: item.text, phase: item.phase };
    });
  });
}

export function titleOf(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}
