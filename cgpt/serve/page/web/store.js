// The conversations that this browser keeps, in IndexedDB: whole ones, and beside them heads with what the list shows.

const HEADS = "heads", CHATS = "chats";
let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("cgpt", 1);
    request.onupgradeneeded = () => {
      for (const name of [HEADS, CHATS]) request.result.createObjectStore(name, { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

// The result of a request that use(store, ...) makes within a transaction, once that is done.
async function within(mode, names, use) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(names, mode);
    const request = use(...names.map(name => transaction.objectStore(name)));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

const headOf = ({ id, title, updated }) => ({ id, title, updated });

export const store = {
  // [{ id, title, updated }], the newest first
  async heads() {
    return (await within("readonly", [HEADS], heads => heads.getAll())).sort((a, b) => b.updated - a.updated);
  },
  get: id => within("readonly", [CHATS], chats => chats.get(id)),
  all: () => within("readonly", [CHATS], chats => chats.getAll()),
  put: chat => within("readwrite", [HEADS, CHATS], (heads, chats) => { heads.put(headOf(chat)); chats.put(chat); }),
  remove: id => within("readwrite", [HEADS, CHATS], (heads, chats) => { heads.delete(id); chats.delete(id); }),
};

const FORMAT = "cgpt-chats";

export function exported(chats) {
  return JSON.stringify({ format: FORMAT, version: 1, chats }, null, 1);
}

// The chats in the text of an exported file, made anew of what a chat may hold. Throws Error in words.
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is no JSON.");
  }
  if (file?.format !== FORMAT || file.version !== 1 || !Array.isArray(file.chats)) {
    throw new Error("This file holds no chats that were exported here.");
  }
  return file.chats.map((chat, number) => {
    try {
      return checkedChat(chat);
    } catch (problem) {
      throw new Error(`Chat ${number + 1} of the file cannot be read: ${problem.message}`);
    }
  });
}

function need(holds, what) {
  if (!holds) throw new Error(what);
}

const isText = value => typeof value === "string";
const isObject = value => typeof value === "object" && value !== null && !Array.isArray(value);
const numberOrNull = value => (Number.isFinite(value) ? value : null);

function checkedChat(chat) {
  need(isObject(chat) && isText(chat.id) && isText(chat.title), "it has no title.");
  need(Array.isArray(chat.nodes), "it has no messages.");
  const nodes = chat.nodes.map((node, i) => {
    need(isObject(node) && Number.isInteger(node.parent) && node.parent >= -1 && node.parent < i,
      `message ${i + 1} does not follow an earlier one.`);
    return { parent: node.parent, role: node.role, ...checkedNode(node, i) };
  });
  need(Number.isInteger(chat.leaf) && chat.leaf >= -1 && chat.leaf < nodes.length, "its last message is missing.");
  return { id: chat.id, title: chat.title, updated: numberOrNull(chat.updated) ?? Date.now(), nodes, leaf: chat.leaf };
}

function checkedNode(node, i) {
  if (node.role === "user") {
    need(isText(node.text), `message ${i + 1} has no text.`);
    return { text: node.text };
  }
  if (node.role === "tool") {
    need(isObject(node.outputs) && Object.values(node.outputs).every(isText), `message ${i + 1} has no results.`);
    return { outputs: { ...node.outputs } };
  }
  need(node.role === "assistant" && Array.isArray(node.items), `message ${i + 1} is of no known kind.`);
  const stats = isObject(node.stats) && Object.fromEntries(
    ["tokens", "prompt", "cached", "first", "rate"].map(name => [name, numberOrNull(node.stats[name])]));
  return {
    items: node.items.map(item => checkedItem(item, i)),
    status: ["done", "stopped", "cut", "failed"].includes(node.status) ? node.status : "stopped",
    stats: stats || null,
    error: isText(node.error) ? node.error : null,
  };
}

function checkedItem(item, i) {
  need(isObject(item), `message ${i + 1} holds what is no part of an answer.`);
  const { type, text } = item;
  if (type === "call") {
    const { call_id, name, arguments: given } = item;
    need([call_id, name, given].every(isText), `message ${i + 1} has a call that is not whole.`);
    return { type, call_id, name, arguments: given };
  }
  need((type === "message" || type === "reasoning") && isText(text), `message ${i + 1} holds an unknown part.`);
  if (type === "reasoning") return { type, text, seconds: numberOrNull(item.seconds) };
  return { type, text, phase: item.phase === "commentary" ? "commentary" : "final_answer" };
}
