"""The developer's (or the target's) Docker engine, spoken to directly over its HTTP API.

    endpoint    which engine: found as the docker command finds it
    by_ssh      a stream to an engine behind ssh://
    tls         a stream to one behind TLS, whose sending half can end
    wire        HTTP/1.1 on asyncio streams: requests, streams, hijacked connections
    engine      one method per call that mbridge makes, errors in the user's words
    options     `docker run` options → the API's JSON
    bodies      the JSON of our own containers: pause, bridge, app, agent

Why not docker-py: its hijacked sockets lose what arrives together with the response's header (the agent's preamble does),
its streams block a thread that cannot be cancelled, and importing it costs a tenth of the start. It stays in use where
it knows better: credential helpers of pulls, and builds of our images (adapters/images.py).
"""
