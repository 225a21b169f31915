"""The asyncio shell round `protocol.stream`: a transport that keeps its protocol while carriers come and go.

carrier.py     one carrier's descriptors, read and written without blocking
transport.py   ResumableTransport: one end of a stream as an asyncio.Transport
server.py      ResumableServer: carriers that arrive at the agent, new streams and resumptions
"""

from bridge.adapters.resumable.server import ResumableServer
from bridge.adapters.resumable.transport import ResumableTransport

__all__ = ["ResumableServer", "ResumableTransport"]
