"""What the awaited client does differently from the waiting one."""

import asyncio

sleep, in_thread = asyncio.sleep, asyncio.to_thread


class OnlyHere:
    """Verbs of this client alone: none."""
