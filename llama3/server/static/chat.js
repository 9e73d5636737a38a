// The page: a message goes out, tokens come in and are shown; what the model says is only ever text to the browser.
import { build, field, read } from "./parameters.js";
import { code } from "./code.js";

const KEPT = "llama3.dialogue";
const MOST_KEPT = 100; // messages
let dialogue = JSON.parse(localStorage.getItem(KEPT) ?? "[]"); // {role, content, calls?, tokens?, figures?}
let running = null; // the AbortController of the answer that is being written

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

function say(text, error = false) {
  field("status").textContent = text;
  field("status").className = error ? "error" : "";
}

function keep() {
  localStorage.setItem(KEPT, JSON.stringify(dialogue.slice(-MOST_KEPT)));
}

// ---- showing ----

function show(message) {
  const words = element("div", { className: "words" });
  const figures = element("div", { className: "figures" });
  const item = element("li", { className: message.role }, element("h2", { textContent: message.role }), words, figures);
  field("dialogue").append(item);
  fill(message, words, figures);
  return { words, figures, item };
}

function fill(message, words, figures) {
  words.replaceChildren(message.content);
  for (const call of message.calls ?? []) words.append(card(call));
  figures.replaceChildren(message.figures ?? "");
  if (message.tokens?.length) {
    const toggle = element("button", { type: "button", textContent: "Tokens" });
    toggle.addEventListener("click", () => showTokens(message, words));
    figures.append(" ", toggle);
  }
}

function card(call) {
  return element("div", { className: "call", textContent: `${call.name}(${call.arguments})` });
}

function showTokens(message, words) {
  const table = element("table", { className: "rivals" });
  words.replaceChildren(
    ...message.tokens.map((token) => {
      const button = element("button", { type: "button", textContent: token.token, title: percent(token.logprob) });
      button.addEventListener("click", () => {
        const rows = token.top_logprobs.map((rival) =>
          element("tr", {}, element("td", { textContent: JSON.stringify(rival.token) }),
            element("td", { textContent: percent(rival.logprob) })));
        table.replaceChildren(...rows);
      });
      return button;
    }),
    table,
  );
}

const percent = (logprob) => `${Number((100 * Math.exp(logprob)).toPrecision(3))} %`;

// ---- asking ----

function messages() {
  const system = field("system").value.trim();
  const said = dialogue.map(({ role, content, calls }) => ({
    role,
    content: calls?.length
      ? calls.map((call) => `{"name":${JSON.stringify(call.name)},"parameters":${call.arguments}}`).join("; ")
      : content,
  }));
  return system ? [{ role: "system", content: system }, ...said] : said;
}

const headers = () => {
  const token = field("token").value;
  return token ? { authorization: `Bearer ${token}` } : {};
};

async function ask(role, content) {
  let settings;
  try {
    settings = read();
  } catch (error) {
    return say(error.message, true);
  }
  dialogue.push({ role, content });
  show(dialogue.at(-1));
  const body = { ...settings, messages: messages(), stream: true, logprobs: true, top_logprobs: 5 };
  const answer = { role: "assistant", content: "", calls: [], tokens: [], figures: "" };
  const shown = show(answer);
  running = new AbortController();
  field("send").hidden = true;
  field("stop").hidden = false;
  say("Writing");
  const start = performance.now();
  let first = null;
  try {
    const reply = await fetch("v1/chat/completions", {
      method: "POST", body: JSON.stringify(body), headers: headers(), signal: running.signal,
    });
    if (!reply.ok) throw new Error(await reason(reply));
    for await (const chunk of events(reply)) {
      if (chunk.errors) throw new Error(chunk.errors[0].message);
      const [choice] = chunk.choices;
      const tokens = choice.logprobs?.content ?? [];
      if (tokens.length) first ??= performance.now() - start;
      answer.tokens.push(...tokens);
      answer.content += choice.delta.content ?? "";
      for (const call of choice.delta.tool_calls ?? []) answer.calls.push(call.function);
      shown.words.textContent = answer.content;
      if (chunk.usage) {
        const seconds = (performance.now() - start) / 1000;
        const n = chunk.usage.completion_tokens;
        answer.figures = `${n} tokens, ${(n / seconds).toFixed(0)}/s, first after ${((first ?? 0) / 1000).toFixed(2)} s, `
          + `${choice.finish_reason}, seed ${chunk.seed}`;
      }
    }
    say("");
  } catch (error) {
    const stopped = error.name === "AbortError";
    answer.figures ||= stopped ? "stopped" : "";
    say(stopped ? "Stopped" : error.message, !stopped);
  }
  running = null;
  field("send").hidden = false;
  field("stop").hidden = true;
  if (answer.content || answer.calls.length) {
    dialogue.push(answer);
    fill(answer, shown.words, shown.figures);
  } else {
    shown.item.remove();
    if (role === "user") {
      dialogue.pop();
      field("message").value ||= content; // nothing typed is lost
      field("dialogue").lastElementChild?.remove();
    }
  }
  keep();
}

async function reason(reply) {
  const text = await reply.text();
  try {
    const [error] = JSON.parse(text).errors;
    return `${error.message} (${error.code})`;
  } catch {
    return `HTTP ${reply.status}`;
  }
}

async function* events(reply) {
  let rest = "";
  for await (const part of reply.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + part).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.slice("data: ".length);
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
    return say(error.message, true);
  }
  const typed = field("message").value.trim();
  const said = messages();
  if (typed || !said.length) said.push({ role: "user", content: typed || "What is RoPE?" });
  const forms = code({ messages: said, ...settings }, location.origin, field("token").value);
  const choose = (name) => { field("text").textContent = forms[name]; };
  field("languages").replaceChildren(...Object.keys(forms).map((name) => {
    const button = element("button", { type: "button", textContent: name });
    button.addEventListener("click", () => choose(name));
    return button;
  }));
  choose("curl");
  field("code").showModal();
}

build();
field("token").value = sessionStorage.getItem("llama3.token") ?? "";
field("token").addEventListener("change", () => sessionStorage.setItem("llama3.token", field("token").value));
dialogue.forEach(show);
field("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = field("message").value.trim();
  if (!text || running) return;
  field("message").value = "";
  // After a call the message is what the tool has answered.
  ask(dialogue.at(-1)?.calls?.length ? "tool" : "user", text);
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
  keep();
  say("");
});
field("show-code").addEventListener("click", showCode);

const listed = await fetch("v1/models", { headers: headers() });
if (listed.ok) {
  const { data, adapters } = await listed.json();
  field("model").textContent = data[0].id;
  const chosen = JSON.parse(localStorage.getItem("llama3.settings") ?? "{}").lora ?? "";
  field("lora").append(...adapters.map((name) => element("option", { value: name, textContent: name })));
  field("lora").value = adapters.includes(chosen) ? chosen : "";
} else {
  say(await reason(listed), true);
}
