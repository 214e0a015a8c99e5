//! How this machine is called and where it is reached, as far as it can tell by itself.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

/// The address by which this host reaches others: that of its default route. No packet is sent.
pub fn own_address() -> IpAddr {
    let found = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    found.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

/// The kernel's host name, in lower case.
pub fn own_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_lowercase()).filter(|name| !name.is_empty())
}
