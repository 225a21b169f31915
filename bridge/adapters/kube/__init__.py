"""Kubernetes: the API server as kubectl would reach it, targets, agents beside them, and carriers through the API.

    kubeconfig   files, contexts, users -> Access: frozen, nothing dialled yet
    credentials  TLS context, tokens, exec plugins -> headers of a request, renewed when they expire
    api          one aiohttp session; answers and errors in the user's words
    targets      "deploy/web" -> one ready pod and one container of it, or the candidates and why none serves
    agents       ephemeral container or helper pod: what is asked for, on which rung, and waiting for its first log line
    carriers     port-forward and exec over WebSocket, each behind one end of a socket pair

Credentials stay in this process. Nothing here imports the official client, save for a user entry with `auth-provider`
(kubeconfig.py): its import costs more than the whole start-up needs.
"""
