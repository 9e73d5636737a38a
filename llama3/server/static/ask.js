// The form of /inspect: sends the message and lets inspect.js draw what comes back.
const find = (id) => document.getElementById(id);

function inputs() {
  const body = { prompt: find("prompt").value, without: find("without").value.split(/[\s,]+/).filter(Boolean) };
  for (const name of ["max_tokens", "temperature", "top_p", "seed"]) {
    if (find(name).value !== "") body[name] = Number(find(name).value);
  }
  return body;
}

function report(text, failed = false) {
  find("status").textContent = text;
  find("status").classList.toggle("error", failed);
}

find("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  find("send").disabled = true;
  report("Looking inside; each part is also switched off once, if the model is small.");
  const headers = { "content-type": "application/json" }, token = find("token").value;
  if (token) headers.authorization = `Bearer ${token}`;
  try {
    const response = await fetch("inspect/run", { method: "POST", headers, body: JSON.stringify(inputs()) });
    const result = await response.json();
    if (!response.ok) throw new Error(result.errors?.[0]?.message ?? `HTTP ${response.status}`);
    window.show(result);
    report("");
  } catch (error) {
    report(error.message, true);
  } finally {
    find("send").disabled = false;
  }
});

find("token").value = sessionStorage.getItem("llama3.token") ?? ""; // as the playground keeps it
find("token").addEventListener("change", () => sessionStorage.setItem("llama3.token", find("token").value));
