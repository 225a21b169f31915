"""The developer's program of the demo: knows nothing of mbridge, asks what only the shop's own network can answer.

It takes the database's address, user and password from the environment, as the shop itself does.
"""

import os
import socket
import subprocess
import sys
import urllib.request


def ask(what, *command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    said = done.stdout.strip() if done.returncode == 0 else "failed: " + done.stderr.splitlines()[0]
    print(f"{what:<14} {said}", flush=True)
    return done.returncode == 0


def fetch(what, url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            print(f"{what:<14} {answer.read().decode().strip()}", flush=True)
        return True
    except OSError as error:
        print(f"{what:<14} failed: {error}", flush=True)
        return False


QUESTION = "SELECT count(*) || ' orders, ' || sum(price) || ' in sum; you are ' || host(inet_client_addr()) FROM orders"

print(f"{'hostname':<14} {socket.gethostname()}")
print(f"{'environment':<14} PGHOST={os.environ.get('PGHOST')} PGUSER={os.environ.get('PGUSER')} REDIS_HOST={os.environ.get('REDIS_HOST')}")
good = [
    fetch("web service", "http://stock:8000/"),
    ask("PostgreSQL", "psql", "-AtX", "-c", QUESTION),
    ask("Redis", "redis-cli", "-h", os.environ.get("REDIS_HOST", "cache"), "INCR", "visits"),
]
sys.exit(0 if all(good) else 1)
