"""Runs on a VM: asks its PostgreSQL ten times a second whether it is the primary, and prints when and what it said."""

import time

import psycopg  # type: ignore[import-not-found]  # it is in the environment that rig.py makes

PERIOD_SECONDS = 0.05


def main() -> None:
    """Print `seconds-since-the-epoch primary|replica|down` forever."""
    connection = None
    while True:
        began = time.time()
        try:
            if connection is None:
                connection = psycopg.connect(
                    "host=127.0.0.1 port=5432 user=postgres dbname=postgres connect_timeout=2", autocommit=True
                )
            row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
            said = "replica" if row and row[0] else "primary"
        except psycopg.Error:
            said = "down"
            if connection is not None:
                connection.close()
            connection = None
        print(time.time(), said, flush=True)
        time.sleep(max(0.0, began + PERIOD_SECONDS - time.time()))


main()
