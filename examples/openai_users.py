"""Simulated users of an existing product: each asks by the openai package, reads one answer and presses a thumb.

    python examples/openai_users.py [URL] [THUMBS]

They like answers that speak to them: a thumb up if the answer says "you" or "your", a thumb down if not. The service
knows nothing of that. Run it again once a release is live: more thumbs point up.
"""

import os
import random
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai

USERS = 50
TOPICS = (
    "tea coffee bread soup music sleep rain chess paint wood water salt wool glass paper honey milk rice fruit fish "
    "corn cheese butter sugar ice snow sand clay ink soap oil art work sport travel money time light"
)
QUESTIONS = ("tips for {}", "tell me about {}", "help me with {}", "a note on {}", "talk about {}", "what about {}?")

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
thumbs = int(sys.argv[2]) if len(sys.argv) > 2 else 400
key = os.environ.get("PLAUDIT_KEY", "none")
product = openai.OpenAI(base_url=url, api_key=key, timeout=120.0)
feedback = httpx.Client(headers={"authorization": f"Bearer {key}"}, timeout=60.0)


def visit(number):
    """One user's visit; True for a thumb up."""
    user = f"user-{number % USERS}"
    question = random.choice(QUESTIONS).format(random.choice(TOPICS.split()))
    reply = product.chat.completions.create(
        model="instruction", messages=[{"role": "user", "content": question}], user=user
    )
    up = re.search(r"\byour?\b", reply.choices[0].message.content) is not None
    thumb = {"handle": reply.plaudit["handle"], "rater": user, "thumbs": {"up": up}}
    feedback.post(f"{url}/feedback", json=thumb).raise_for_status()
    return up


with ThreadPoolExecutor(8) as visits:
    ups = sum(visits.map(visit, range(thumbs)))
print(f"{thumbs} thumbs, {ups / thumbs:.0%} of them up")
