//! Where an agent listens for others, and what it tells control about that.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::str::FromStr;

use skein_filemesh::core::membership::is_usable;
use skein_wire::limits::MESH_PEER_ADDRESSES_MAX;

/// Ports of one range: more would only be tried in vain.
const PORTS_MAX: u16 = 1024;

/// Whether and where to listen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Listen {
    /// `off`.
    Off,
    /// `ip:port` or `ip:first-last`.
    At {
        /// An address of this host, or the unspecified one for all.
        ip: IpAddr,
        /// The first free one is taken; 0 is any.
        ports: RangeInclusive<u16>,
    },
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let wrong =
            || format!("mesh.listen: {text:?} is neither \"off\" nor ip:port nor ip:first-last");
        let (ip, ports) = text.rsplit_once(':').ok_or_else(wrong)?;
        let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let (first, last): (u16, u16) =
            first.parse().ok().zip(last.parse().ok()).ok_or_else(wrong)?;
        match last.checked_sub(first) {
            Some(0..PORTS_MAX) => Ok(Self::At { ip, ports: first..=last }),
            _ => Err(wrong()),
        }
    }
}

/// Listens at the first free port; none when it shall not. The error is the last port's.
pub fn bind(listen: &Listen) -> io::Result<Option<TcpListener>> {
    let Listen::At { ip, ports } = listen else { return Ok(None) };
    let mut refused = io::ErrorKind::InvalidInput.into();
    for port in ports.clone() {
        match TcpListener::bind((*ip, port)) {
            Ok(listener) => return Ok(Some(listener)),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// The addresses at which others reach a listener at `bound` of a host with these `ips`, in their
/// order.
pub fn addresses(bound: SocketAddr, ips: &[IpAddr]) -> Vec<String> {
    let own = [bound.ip()];
    let ips = if bound.ip().is_unspecified() { ips } else { &own };
    // The wildcard of IPv6 takes connections of both families, that of IPv4 of its own.
    let reached = ips.iter().filter(|ip| bound.is_ipv6() || ip.is_ipv4());
    let addresses = reached.map(|ip| SocketAddr::new(*ip, bound.port())).filter(is_usable);
    addresses.take(MESH_PEER_ADDRESSES_MAX).map(|address| address.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(text: &str) -> Listen {
        text.parse().unwrap()
    }

    #[test]
    fn a_place_to_listen_is_off_a_port_or_a_range() {
        assert_eq!(listen("off"), Listen::Off);
        let any = IpAddr::from([0, 0, 0, 0]);
        assert_eq!(listen("0.0.0.0:60020-60030"), Listen::At { ip: any, ports: 60020..=60030 });
        assert_eq!(listen("[::1]:7"), Listen::At { ip: "::1".parse().unwrap(), ports: 7..=7 });
        for bad in ["", "on", "60020", "host:1", "1.2.3.4:2-1", "1.2.3.4:1-65535", "1.2.3.4:x"] {
            assert!(bad.parse::<Listen>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_free_port_of_a_range_is_taken() {
        // Two neighbouring ports, the first of them taken.
        let (taken, port) = (0..100)
            .find_map(|_| {
                let taken = TcpListener::bind("127.0.0.1:0").unwrap();
                let port = taken.local_addr().unwrap().port();
                let next = port.checked_add(1)?;
                TcpListener::bind(("127.0.0.1", next)).ok().map(|_| (taken, port))
            })
            .unwrap();
        let range = listen(&format!("127.0.0.1:{port}-{}", port + 1));
        let bound = bind(&range).unwrap().unwrap().local_addr().unwrap();
        assert_eq!(bound.port(), port + 1);
        assert!(bind(&listen(&format!("127.0.0.1:{port}"))).is_err());
        assert!(bind(&Listen::Off).unwrap().is_none());
        drop(taken);
    }

    #[test]
    fn others_are_told_the_hosts_addresses() {
        let ips = ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|ip| ip.parse().unwrap());
        let at = |text: &str| addresses(text.parse().unwrap(), &ips);
        assert_eq!(at("0.0.0.0:60020"), ["10.0.0.1:60020", "10.0.0.2:60020"]);
        assert_eq!(at("[::]:9"), ["10.0.0.1:9", "10.0.0.2:9", "[fd00::1]:9"]);
        assert_eq!(at("10.9.9.9:9"), ["10.9.9.9:9"]);
        let many = [IpAddr::from([10, 0, 0, 1]); 9];
        assert_eq!(addresses("0.0.0.0:9".parse().unwrap(), &many).len(), MESH_PEER_ADDRESSES_MAX);
    }
}
