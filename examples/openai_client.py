"""An existing product: the openai package with another URL, and its users' thumbs."""

import os
import sys

import httpx
import openai

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
key = os.environ.get("PLAUDIT_KEY", "none")

client = openai.OpenAI(base_url=url, api_key=key)
reply = client.chat.completions.create(
    model="instruction",
    messages=[{"role": "user", "content": "Name a tree."}],
    max_tokens=16,
    metadata={"page": "chat"},
)
print(reply.choices[0].message.content)
print(reply.usage)

# When the user presses the thumb:
httpx.post(
    f"{url}/feedback",
    json={"handle": reply.plaudit["handle"], "rater": "ada", "thumbs": {"up": True}},
    headers={"authorization": f"Bearer {key}"},
).raise_for_status()

# A stream carries its handle in the first chunk and in the last.
handle = ""
stream = client.chat.completions.create(
    model="instruction", messages=[{"role": "user", "content": "Name a river."}], max_tokens=16, stream=True
)
for chunk in stream:
    handle = getattr(chunk, "plaudit", {}).get("handle", handle)
    print(chunk.choices[0].delta.content or "", end="")
print(f"\nthe handle: {handle[:12]}...")
