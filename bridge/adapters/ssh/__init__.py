"""SSH at both ends of the link, with asyncssh: `client` in the bridge, `server` in the agent.

The files:
    client.py, server.py   who may do what, options, subsystems
    connection.py          the short path of channel packets through asyncssh
    channel.py             one flow: windows, ends, resets
    windows.py             what all flows may have under way
    messages.py            framed messages on a channel
"""

from bridge.adapters.ssh.channel import Channel, Sink
from bridge.adapters.ssh.client import ControlChannel, SshConnection, UdpChannel, connect_ssh

__all__ = ["Channel", "ControlChannel", "Sink", "SshConnection", "UdpChannel", "connect_ssh"]
