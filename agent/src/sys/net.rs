//! The host's addresses, asked of the kernel.
#![allow(unsafe_code)] // getifaddrs has no safe form in std.

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Interfaces looked at; container hosts have thousands.
const INTERFACES_MAX: usize = 4096;

/// Addresses of interfaces that are up and not loopback, with the interface's name.
pub fn addresses() -> Vec<(String, IpAddr)> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the kernel fills `list` when it answers 0; it is freed below.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut next = list;
    for _ in 0..INTERFACES_MAX {
        // SAFETY: `next` is null or an element of the list, which lives until it is freed.
        let Some(entry) = (unsafe { next.as_ref() }) else { break };
        next = entry.ifa_next;
        let flags = entry.ifa_flags as libc::c_int;
        if flags & libc::IFF_UP == 0 || flags & libc::IFF_LOOPBACK != 0 {
            continue;
        }
        // SAFETY: `ifa_addr` is null or a socket address whose family says its type, and
        // `ifa_name` is a NUL-terminated name.
        let (address, name) =
            unsafe { (address_of(entry.ifa_addr), CStr::from_ptr(entry.ifa_name)) };
        if let Some(address) = address {
            found.push((name.to_string_lossy().into_owned(), address));
        }
    }
    // SAFETY: `list` came from getifaddrs and nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    found
}

/// # Safety
/// `address` must be null or point to a socket address of the type that its family says.
unsafe fn address_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the caller's promise.
    match i32::from(unsafe { address.as_ref() }?.sa_family) {
        libc::AF_INET => {
            // SAFETY: the family says so; read unaligned because the list promises no alignment.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            let v6 = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            (!v6.is_unicast_link_local()).then(|| v6.into())
        }
        _ => None,
    }
}
