"""Sends requests and prints their responses: `python examples/producer.py 'Sum column B' 'Sum column C'`.

What the API service does, in a few lines: one client for all threads, each of which waits for its own response.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from gigaoffice_worker.client import Client, ResponseTimeoutError

QUESTIONS = sys.argv[1:] or ["Sum column B", "Sort the rows by date"]


def main() -> int:
    """Ask all questions at once; 0 if every one was answered."""
    with Client(os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092"), settings=dict(os.environ)) as client:

        def ask(question: str) -> bool:
            try:
                response = client.ask({"query": question, "category": "spreadsheet-assistance"}, timeout=60)
            except ResponseTimeoutError as error:
                print(f"{question}: {error}")
                return False
            print(f"{question}: {response.result if response.completed else response.error}")
            return response.completed

        with ThreadPoolExecutor(16) as pool:
            return 0 if all(list(pool.map(ask, QUESTIONS))) else 1


if __name__ == "__main__":
    sys.exit(main())
