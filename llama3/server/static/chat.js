// The chat: send the dialogue to the server, and show the answer while it streams in.
// Model output is only ever set as text, never parsed as HTML.
import { build, field, read } from "./parameters.js";
import { code } from "./code.js";

const STORAGE_KEY = "llama3.dialogue";
const MAX_STORED_MESSAGES = 100;
let dialogue = JSON.parse(localStorage.getItem(STORAGE_KEY) ?? "[]"); // {role, content, calls?, tokens?, stats?}
let running = null; // the AbortController of the answer that is streaming in

const element = (name, properties = {}, ...children) => {
  const created = Object.assign(document.createElement(name), properties);
  created.append(...children);
  return created;
};

function setStatus(text, isError = false) {
  field("status").textContent = text;
  field("status").className = isError ? "error" : "";
}

function saveDialogue() {
  localStorage.setItem(STORAGE_KEY, JSON.stringify(dialogue.slice(-MAX_STORED_MESSAGES)));
}

// ---- messages on the page ----

// Append a message to the page -> its elements {item, content, stats}.
function appendMessage(message) {
  const content = element("div", { className: "content" });
  const stats = element("div", { className: "stats" });
  const role = element("h2", { textContent: message.role });
  const item = element("li", { className: message.role }, role, content, stats);
  field("dialogue").append(item);
  renderMessage(message, { content, stats });
  return { item, content, stats };
}

function renderMessage(message, { content, stats }) {
  content.replaceChildren(message.content);
  for (const call of message.calls ?? []) content.append(callCard(call));
  stats.replaceChildren(message.stats ?? "");
  if (message.tokens?.length) {
    const button = element("button", { type: "button", textContent: "Tokens" });
    button.addEventListener("click", () => showTokens(message, content));
    stats.append(" ", button);
  }
}

function callCard(call) {
  return element("div", { className: "call", textContent: `${call.name}(${call.arguments})` });
}

// Show the message token by token; a click on a token lists the most likely tokens at its place.
function showTokens(message, content) {
  const table = element("table", { className: "alternatives" });
  const row = (alternative) => element("tr", {},
    element("td", { textContent: JSON.stringify(alternative.token) }),
    element("td", { textContent: percent(alternative.logprob) }));
  const buttons = message.tokens.map((token) => {
    const button = element("button", { type: "button", textContent: token.token, title: percent(token.logprob) });
    button.addEventListener("click", () => table.replaceChildren(...token.top_logprobs.map(row)));
    return button;
  });
  content.replaceChildren(...buttons, table);
}

const percent = (logprob) => `${Number((100 * Math.exp(logprob)).toPrecision(3))} %`;

// ---- requests ----

// The messages of the request. Tool calls are written as the model writes them.
function requestMessages() {
  const system = field("system").value.trim();
  const messages = dialogue.map(({ role, content, calls }) => ({
    role,
    content: calls?.length
      ? calls.map((call) => `{"name":${JSON.stringify(call.name)},"parameters":${call.arguments}}`).join("; ")
      : content,
  }));
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}

const headers = () => {
  const token = field("token").value;
  return token ? { authorization: `Bearer ${token}` } : {};
};

async function sendMessage(role, content) {
  let settings;
  try {
    settings = read();
  } catch (error) {
    return setStatus(error.message, true);
  }
  dialogue.push({ role, content });
  appendMessage(dialogue.at(-1));
  const answer = { role: "assistant", content: "", calls: [], tokens: [], stats: "" };
  const body = { ...settings, messages: requestMessages(), stream: true, logprobs: true, top_logprobs: 5 };
  const shown = appendMessage(answer);
  setRunning(new AbortController());
  setStatus("Writing");
  try {
    await streamAnswer(body, answer, shown);
    setStatus("");
  } catch (error) {
    const stopped = error.name === "AbortError";
    answer.stats ||= stopped ? "stopped" : "";
    setStatus(stopped ? "Stopped" : error.message, !stopped);
  }
  setRunning(null);
  if (answer.content || answer.calls.length) {
    dialogue.push(answer);
    renderMessage(answer, shown);
  } else {
    removeUnanswered(shown.item, role, content);
  }
  saveDialogue();
}

function setRunning(controller) {
  running = controller;
  field("send").hidden = running !== null;
  field("stop").hidden = running === null;
}

// Send the request, and add the chunks of its answer to `answer` and to the page.
async function streamAnswer(body, answer, shown) {
  const start = performance.now();
  let firstToken = null; // milliseconds
  const reply = await fetch("v1/chat/completions", {
    method: "POST", body: JSON.stringify(body), headers: headers(), signal: running.signal,
  });
  if (!reply.ok) throw new Error(await errorMessage(reply));
  for await (const chunk of events(reply)) {
    if (chunk.errors) throw new Error(chunk.errors[0].message);
    const [choice] = chunk.choices;
    const tokens = choice.logprobs?.content ?? [];
    if (tokens.length) firstToken ??= performance.now() - start;
    answer.tokens.push(...tokens);
    answer.content += choice.delta.content ?? "";
    for (const call of choice.delta.tool_calls ?? []) answer.calls.push(call.function);
    shown.content.textContent = answer.content;
    if (chunk.usage) {
      const seconds = (performance.now() - start) / 1000;
      const n = chunk.usage.completion_tokens;
      answer.stats = `${n} tokens, ${(n / seconds).toFixed(0)} tokens/s, `
        + `first token after ${((firstToken ?? 0) / 1000).toFixed(2)} s, `
        + `finish_reason ${choice.finish_reason}, seed ${chunk.seed}`;
    }
  }
}

// Nothing was answered: take the user's message back into the input field, so that it is not lost.
function removeUnanswered(item, role, content) {
  item.remove();
  if (role === "user") {
    dialogue.pop();
    field("message").value ||= content;
    field("dialogue").lastElementChild?.remove();
  }
}

async function errorMessage(reply) {
  const text = await reply.text();
  try {
    const [error] = JSON.parse(text).errors;
    return `${error.message} (${error.code})`;
  } catch {
    return `HTTP ${reply.status}`;
  }
}

// The decoded server-sent events of a response, up to [DONE].
async function* events(reply) {
  let rest = "";
  for await (const part of reply.body.pipeThrough(new TextDecoderStream())) {
    const complete = (rest + part).split("\n\n");
    rest = complete.pop();
    for (const event of complete) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// ---- the page ----

function showCode() {
  let settings;
  try {
    settings = read();
  } catch (error) {
    return setStatus(error.message, true);
  }
  const typed = field("message").value.trim();
  const messages = requestMessages();
  if (typed || !messages.length) messages.push({ role: "user", content: typed || "What is RoPE?" });
  const programs = code({ messages, ...settings }, location.origin, field("token").value);
  const choose = (language) => { field("text").textContent = programs[language]; };
  field("languages").replaceChildren(...Object.keys(programs).map((language) => {
    const button = element("button", { type: "button", textContent: language });
    button.addEventListener("click", () => choose(language));
    return button;
  }));
  choose("curl");
  field("code").showModal();
}

build();
field("token").value = sessionStorage.getItem("llama3.token") ?? "";
field("token").addEventListener("change", () => sessionStorage.setItem("llama3.token", field("token").value));
dialogue.forEach(appendMessage);
field("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = field("message").value.trim();
  if (!text || running) return;
  field("message").value = "";
  // After a tool call, the message is the tool's result.
  sendMessage(dialogue.at(-1)?.calls?.length ? "tool" : "user", text);
});
field("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    field("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
field("stop").addEventListener("click", () => running?.abort());
field("clear").addEventListener("click", () => {
  running?.abort();
  dialogue = [];
  field("dialogue").replaceChildren();
  saveDialogue();
  setStatus("");
});
field("show-code").addEventListener("click", showCode);

const models = await fetch("v1/models", { headers: headers() });
if (models.ok) {
  const { data, adapters } = await models.json();
  field("model").textContent = data[0].id;
  const chosen = JSON.parse(localStorage.getItem("llama3.settings") ?? "{}").lora ?? "";
  field("lora").append(...adapters.map((name) => element("option", { value: name, textContent: name })));
  field("lora").value = adapters.includes(chosen) ? chosen : "";
} else {
  setStatus(await errorMessage(models), true);
}
