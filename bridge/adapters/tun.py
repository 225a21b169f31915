"""The tun device that carries the pod's addresses on our side (Documentation/networking/tuntap.rst).

It is *persistent*: when the bridge dies, the device and its routes stay, so packets for the cluster are lost in it and never
take the app's own default route. A new bridge attaches to the same device by its name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from bridge.errors import KernelLacks, MissingCapability

_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
MTU = 65535  # one UDP datagram of 65,507 bytes is one packet; the target's kernel fragments as its own link needs


def open_tun(name: str, path: str = "/dev/net/tun") -> int:
    """Make or attach to the persistent tun `name`; return its non-blocking descriptor, which yields bare IP packets."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise KernelLacks(f"{path} does not exist", hint="module tun: modprobe tun, or start the container with that device") from exc
    except OSError as exc:
        raise MissingCapability(f"cannot open {path}: {exc.strerror}") from exc
    try:
        # IFNAMSIZ is 16 with the NUL: the kernel refuses longer names (netdevice(7)).
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode()[:15], _IFF_TUN | _IFF_NO_PI))
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except OSError as exc:
        os.close(fd)
        if exc.errno == errno.EPERM:
            raise MissingCapability("making a tun device is not allowed", hint="the bridge needs NET_ADMIN") from exc
        raise KernelLacks(f"cannot make a tun device: {exc.strerror}", hint="module tun") from exc
    return fd
