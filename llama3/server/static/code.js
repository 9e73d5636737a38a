// The request that the page would send, as code for other programs.
// Typed text is quoted for each language, so that it cannot break out of its string.
const MODEL = "@hf/meta-llama/meta-llama-3-8b-instruct";

const pretty = (value) => JSON.stringify(value, null, 2);
// A value as a Python literal. JSON's strings are valid Python; null, true and false are not.
const python = (value, indent = "") => {
  const inner = indent + "    ";
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map((v) => python(v, indent)).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const lines = Object.entries(value).map(([k, v]) => `${inner}${JSON.stringify(k)}: ${python(v, inner)},\n`);
  return lines.length ? `{\n${lines.join("")}${indent}}` : "{}";
};

export function code(inputs, origin, token) {
  const url = `${origin}/client/v4/accounts/me/ai/run/${MODEL}`;
  const quoted = pretty(inputs).replaceAll("'", "'\\''");
  const bearer = token ? "TOKEN" : "";
  const header = bearer ? ` \\\n  -H 'Authorization: Bearer ${bearer}'` : "";
  const { messages, top_k, repetition_penalty, lora, ...rest } = inputs;
  const extra = JSON.parse(JSON.stringify({ top_k, repetition_penalty, lora }));
  const options = Object.entries(rest).map(([k, v]) => `    ${k}=${python(v, "    ")},\n`).join("");
  return {
    curl: `curl ${url}${header} \\\n  -d '${quoted}'\n`,
    Python: `import requests

reply = requests.post(
    ${JSON.stringify(url)},${bearer ? `\n    headers={"Authorization": "Bearer ${bearer}"},` : ""}
    json=${python(inputs, "    ")},
)
print(reply.json()["result"]["response"])
`,
    OpenAI: `from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(origin + "/v1")}, api_key="${bearer || "none"}")
reply = client.chat.completions.create(
    model="${MODEL}",
    messages=${python(messages, "    ")},
${options}${Object.keys(extra).length ? `    extra_body=${python(extra, "    ")},\n` : ""})
print(reply.choices[0].message.content)
`,
    Worker: `export default {
  async fetch(request, env) {
    return Response.json(await env.AI.run("${MODEL}", ${pretty(inputs).replaceAll("\n", "\n    ")}));
  },
};
`,
  };
}
