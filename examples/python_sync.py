"""Ask for two answers, and tell which one a person preferred."""

import sys

from plaudit.client import Plaudit

target = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"

with Plaudit(target) as client:
    for domain in client.domains():
        print(f"{domain.name} takes {', '.join(domain.kinds)}")

    reply = client.generate(
        "instruction",
        [{"role": "user", "content": "How do I descale a kettle?"}],
        n=2,
        max_tokens=48,
        tags={"page": "help"},
    )
    for place, completion in enumerate(reply.completions):
        print(f"{place}: {completion.text}")
    print(f"{reply.prompt_tokens} tokens in the prompt, {reply.completion_tokens} in the answers")

    # The person preferred the second answer, and gave the first a thumb down.
    reply.choose(1, 0, rater="ada")
    given = reply.thumbs_down(0, rater="ada", tags={"button": "footer"})
    print(f"kept as {given.feedback_id}")

    # A backend keeps the handle with the answer; it is all that feedback needs later.
    client.feedback_from_handle(reply.handle).thumbs_up("#1", rater="grace")
