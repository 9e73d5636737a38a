// What can be set, with the model page's ranges and defaults; what is left empty is not sent.
const NUMBERS = [
  // name, label, least, largest, step, what holds where it is left empty
  ["max_tokens", "Most tokens of an answer", 1, 8192, 1, "256"],
  ["temperature", "Temperature", 0, 5, "any", "0.6"],
  ["top_p", "top_p", 0.001, 1, "any", "off"],
  ["top_k", "top_k", 1, 50, 1, "off"],
  ["seed", "Seed", 1, 9999999999, 1, "drawn anew"],
  ["repetition_penalty", "Repetition penalty", 0, 2, "any", "off"],
  ["frequency_penalty", "Frequency penalty", -2, 2, "any", "off"],
  ["presence_penalty", "Presence penalty", -2, 2, "any", "off"],
];
const TEXTS = ["system", "schema", "tools", "lora"];
const KEPT = "llama3.settings";

export const field = (name) => document.getElementById(name);

export function build() {
  for (const [name, label, least, largest, step, empty] of NUMBERS) {
    const title = document.createElement("label");
    title.htmlFor = name;
    title.textContent = `${label} (${least} to ${largest})`;
    const input = Object.assign(document.createElement("input"), {
      id: name, type: "number", min: least, max: largest, step, placeholder: empty,
    });
    field("numbers").append(title, input);
  }
  const kept = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
  for (const name of names()) field(name).value = kept[name] ?? "";
  document.querySelector("aside").addEventListener("input", () => {
    const now = Object.fromEntries(names().map((name) => [name, field(name).value]));
    localStorage.setItem(KEPT, JSON.stringify(now));
  });
}

const names = () => [...NUMBERS.map(([name]) => name), ...TEXTS];

// The request's fields. Throws an Error that names what is wrong.
export function read() {
  const found = {};
  for (const [name, label, least, largest] of NUMBERS) {
    const input = field(name);
    if (!input.validity.valid) throw new Error(`${label}: expected a number from ${least} to ${largest}`);
    if (input.value !== "") found[name] = Number(input.value);
  }
  if (field("lora").value) found.lora = field("lora").value;
  const schema = parsed("schema", "JSON Schema");
  if (schema) found.response_format = { type: "json_schema", json_schema: schema };
  const tools = parsed("tools", "Tools");
  if (tools) found.tools = tools;
  return found;
}

function parsed(name, label) {
  const text = field(name).value.trim();
  if (!text) return null;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${label}: not JSON: ${error.message}`);
  }
}
