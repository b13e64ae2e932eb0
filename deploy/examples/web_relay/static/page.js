// Text goes into the page as `textContent` only: whatever a message holds, it is never markup.
const [status, conversation, form, text, problem] =
  ["status", "conversation", "form", "text", "problem"].map((id) => document.getElementById(id));
const source = new EventSource("stream");
let streaming = null; // the answer that is on its way

function add(role, content) {
  const item = document.createElement("li");
  item.className = role === "user" ? "user" : "worker";
  item.textContent = typeof content === "string" ? content : JSON.stringify(content);
  conversation.append(item);
  item.scrollIntoView({ block: "nearest" });
  return item;
}

function on(event, handle) {
  source.addEventListener(event, ({ data }) => handle(JSON.parse(data)));
}

function showStatus(value) {
  status.textContent = status.dataset.status = value;
  for (const field of form.elements) field.disabled = value === "terminated";
  if (value === "terminated") source.close();
}

source.onopen = () => { // every connection begins with all that is kept
  conversation.replaceChildren();
  streaming = null;
};
source.onerror = () => showStatus("reconnecting");
on("status", showStatus);
on("token", (token) => {
  streaming ??= add("worker", "");
  streaming.classList.add("streaming");
  streaming.textContent += token;
});
on("message", ({ role, content }) => {
  if (role !== "user") {
    streaming?.remove(); // the kept answer takes its place
    streaming = null;
  }
  add(role, content);
});

form.onsubmit = async (submit) => {
  submit.preventDefault();
  const answer = await fetch("messages", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ text: text.value }),
  }).catch((error) => new Response(error.message, { status: 503 }));
  problem.textContent = answer.ok ? "" : await answer.text();
  if (answer.ok) form.reset();
};
