// Ask over the HTTP door and give a thumb, with Node's own fetch.
const url = process.argv[2] ?? "http://127.0.0.1:8000/v1";
const key = process.env.PLAUDIT_KEY ?? "none";

async function post(path, body) {
  const answer = await fetch(url + path, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
    body: JSON.stringify(body),
  });
  const value = await answer.json();
  if (!answer.ok) throw new Error(`${value.error.code}: ${value.error.message}`);
  return value;
}

const reply = await post("/chat/completions", {
  model: "instruction",
  messages: [{ role: "user", content: "Name a tree." }],
  max_tokens: 16,
});
console.log(reply.choices[0].message.content);

// When the user presses the thumb:
const given = await post("/feedback", { handle: reply.plaudit.handle, rater: "ada", thumbs: { up: true } });
console.log(`kept as ${given.feedback_id}`);
