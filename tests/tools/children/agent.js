// Says what it hears, and how many there were.
const { createInterface } = require("node:readline");

const say = (line) => console.log(JSON.stringify(line));
let heard = 0;
createInterface({ input: process.stdin }).on("line", (text) => {
  const line = JSON.parse(text);
  if (line.type === "session") say({ type: "ready" });
  if (line.type === "message") say({ type: "output", name: "heard", data: { count: ++heard, content: line.content } });
});
