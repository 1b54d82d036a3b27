"""Ask many questions at once, read one answer as it is written, and give feedback on it."""

import asyncio
import sys

from plaudit.client import AsyncPlaudit, Begun, Delta, Reply

target = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"


async def main() -> None:
    """Run the example."""
    async with AsyncPlaudit(target) as client:
        questions = ("Name a tree.", "Name a river.", "Name a colour.")
        replies = await asyncio.gather(
            *(client.generate("instruction", question, max_tokens=16) for question in questions)
        )
        for question, reply in zip(questions, replies, strict=True):
            print(f"{question} {reply.text}")

        async for event in client.stream("instruction", "Tell me about tea.", max_tokens=32):
            match event:
                case Begun():
                    print(f"feedback may be given from now on, for {event.interaction_id}")
                case Delta():
                    print(event.text, end="", flush=True)
                case Reply():
                    print()
                    await event.thumbs_up(rater="ada")


asyncio.run(main())
